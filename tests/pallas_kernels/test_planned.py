"""Attention of a GPU that is not here is traced as it would be there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.products import product_flops
from pallas_kernels import BlockMask, block_sparse_attention, dense_attention, traced_for_gpu

B, L, N, D = 2, 512, 4, 64
SHAPE = jax.ShapeDtypeStruct((B, L, N, D), jnp.bfloat16)
GIVEN = (SHAPE, SHAPE, SHAPE)
PAIR = 4 * B * N * D  # operations of a pair of tokens in both products


def names(function, *given):
    return str(jax.make_jaxpr(function)(*given))


def quarter():
    blocks = np.eye(4, dtype=bool)[None, None]
    return BlockMask.from_dense(blocks, block_q=128, block_kv=128, q_len=L, kv_len=L, max_blocks=1)


def test_a_trace_that_jax_remembers_is_of_one_device():
    attend = jax.jit(dense_attention)
    assert "dot_product_attention_planned" not in names(attend, *GIVEN)
    with traced_for_gpu():
        assert "dot_product_attention_planned" in names(attend, *GIVEN)
    assert "dot_product_attention_planned" not in names(attend, *GIVEN)


@pytest.mark.parametrize("lengths", [None, jnp.array([3, 7])])
def test_dense_attention_has_the_operations_that_it_has_here(lengths):
    def attend(q, k, v):
        return dense_attention(q, k, v, kv_lengths=lengths)

    here = product_flops(attend, *GIVEN)
    assert here == PAIR * L * L
    with traced_for_gpu():
        assert product_flops(attend, *GIVEN) == here
        assert jax.eval_shape(attend, *GIVEN) == SHAPE


def test_lists_have_the_operations_of_their_blocks():
    def attend(q, k, v):
        return block_sparse_attention(q, k, v, quarter(), return_lse=True)

    def loss(q, k, v):
        return jnp.sum(attend(q, k, v)[0].astype(jnp.float32))

    with traced_for_gpu():
        assert product_flops(attend, *GIVEN) == PAIR * L * 128
        out, lse = jax.eval_shape(attend, *GIVEN)
        # Five products backward, of which two are those of the scores, and a sum for each query.
        both = product_flops(jax.value_and_grad(loss, argnums=(0, 1, 2)), *GIVEN)
        assert both == pytest.approx(3.5 * PAIR * L * 128, rel=0.01)
    assert out == SHAPE
    assert lse == jax.ShapeDtypeStruct((B, N, L), jnp.float32)


def test_what_a_gpu_has_no_kernel_for_is_planned_as_it_would_run():
    wide = jax.ShapeDtypeStruct((B, L, N, 264), jnp.bfloat16)
    exact = jax.ShapeDtypeStruct((B, L, N, D), jnp.float32)
    for shape in (wide, exact):
        with traced_for_gpu():
            assert "planned" not in names(dense_attention, shape, shape, shape)


def test_rows_of_a_map_are_calls_of_larger_arrays():
    shape = jax.ShapeDtypeStruct((3, *SHAPE.shape), jnp.bfloat16)
    with traced_for_gpu():
        assert product_flops(jax.vmap(dense_attention), shape, shape, shape) == 3 * PAIR * L * L
