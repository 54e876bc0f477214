"""Block masks and attention under them: exact masks, empty rows, gradients, density."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import BlockMask, block_sparse_attention, dense_attention
from tests.pallas_kernels.cases import from_map, to_dense, token_mask

B, N, D = 2, 3, 8
# Both sequences end in a short block.
LENGTHS: dict[str, Any] = {"q_len": 11, "kv_len": 14, "block_q": 4, "block_kv": 5}
GRID = (3, 3)


def inputs(q_len=11, kv_len=14):
    draw = np.random.default_rng(0)
    shapes = ((B, length, N, D) for length in (q_len, kv_len, kv_len))
    return tuple(jnp.asarray(draw.normal(size=shape), jnp.float32) for shape in shapes)


def softmax_attention(q, k, v, allowed):
    """Float64 attention under a mask `[B, N, Q, K]`; zeros where nothing is allowed."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = np.einsum("bqnd,bknd->bnqk", q, k) / np.sqrt(q.shape[-1])
    weights = np.where(allowed, np.exp(scores - scores.max(-1, keepdims=True)), 0.0)
    total = weights.sum(-1, keepdims=True)
    return np.einsum("bnqk,bknd->bqnd", weights / np.where(total > 0, total, 1.0), v)


def expand(blocks):
    """The mask of pairs that a map of blocks means, the slow way."""
    rows, columns = (np.arange(LENGTHS["q_len"]) // 4, np.arange(LENGTHS["kv_len"]) // 5)
    return np.asarray(blocks)[:, :, rows][..., columns]


def listed(blocks):
    """The lists of a map of both lengths."""
    return from_map(blocks, None, (4, 5, 11, 14))


def maps():
    """Maps for all rows and heads, for each head, for each of both."""
    return st.sampled_from([(1, 1), (1, N), (B, N)]).flatmap(
        lambda size: st.lists(
            st.booleans(), min_size=size[0] * size[1] * 9, max_size=size[0] * size[1] * 9
        ).map(lambda flags: np.array(flags).reshape(*size, *GRID))
    )


@given(maps())
def test_a_map_comes_back_and_means_its_pairs(blocks):
    mask = listed(blocks)
    np.testing.assert_array_equal(to_dense(mask), blocks)
    np.testing.assert_array_equal(token_mask(mask), expand(blocks))
    np.testing.assert_allclose(density(mask), expand(blocks).mean(), rtol=1e-6)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@given(maps())
def test_attention_is_softmax_over_the_listed_blocks(implementation, blocks):
    q, k, v = inputs()
    out = attend(q, k, v, listed(blocks), implementation)
    np.testing.assert_allclose(out, softmax_attention(q, k, v, expand(blocks)), atol=2e-6)


density = jax.jit(lambda mask: mask.density)


@functools.partial(jax.jit, static_argnums=(4, 5))
def attend(q, k, v, mask, implementation=None, scale=None):
    return block_sparse_attention(q, k, v, mask, scale=scale, implementation=implementation)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_queries_without_keys_give_zeros_and_no_gradient(implementation):
    blocks = np.ones((1, N, *GRID), bool)
    blocks[:, 1, 1] = False
    mask, arrays = listed(blocks), inputs()
    out = np.asarray(attend(*arrays, mask, implementation))
    assert np.abs(out[:, 4:8, 1]).max() == 0 and np.abs(out[:, 4:8, 0]).min() > 0
    gradients = slopes(arrays, np.ones(out.shape, np.float32), mask, implementation)
    assert all(np.isfinite(g).all() for g in gradients)
    assert np.abs(np.asarray(gradients[0])[:, 4:8, 1]).max() == 0


@functools.partial(jax.jit, static_argnums=3)
def slopes(arrays, weight, mask, implementation):
    """Gradients of the weighted sum of the values."""
    return jax.grad(lambda x: jnp.vdot(attend(*x, mask, implementation), weight))(arrays)


def test_gradients_are_those_of_dense_attention_under_the_mask():
    blocks = np.random.default_rng(3).random((1, N, *GRID)) < 0.6
    blocks[..., 0] = True  # dense attention has no answer for an empty row
    weight = np.random.default_rng(4).normal(size=(B, 11, N, D)).astype(np.float32)
    allowed = jnp.asarray(expand(blocks))
    exact = jax.grad(lambda x: jnp.vdot(dense_attention(*x, mask=allowed), weight))
    expected = jax.jit(exact)(inputs())
    for implementation in ("reference", "xla"):
        ours = slopes(inputs(), weight, listed(blocks), implementation)
        for one, two in zip(ours, expected, strict=True):
            np.testing.assert_allclose(one, two, atol=5e-6)


# Length and blocks; each compiles once, times are what varies.
CAUSAL = [(1, 3, 2), (7, 4, 32), (17, 1, 5), (17, 16, 1), (17, 3, 5)]


@settings(max_examples=20)
@given(st.sampled_from(CAUSAL), st.lists(st.integers(0, 5), min_size=17, max_size=17))
def test_causal_masks_allow_the_past_exactly_whatever_the_blocks(sizes, times):
    length, block_q, block_kv = sizes
    time = np.array(times[:length])
    mask = BlockMask.causal(time, block_q, block_kv)
    exact = time[:, None] >= time[None]
    np.testing.assert_array_equal(np.asarray(token_mask(mask))[0, 0], exact)
    blocks = np.asarray(to_dense(mask))[0, 0]
    for i, j in np.ndindex(*blocks.shape):
        block = exact[i * block_q : (i + 1) * block_q, j * block_kv : (j + 1) * block_kv]
        assert blocks[i, j] == block.any()


def test_a_causal_mask_and_lengths_reach_both_implementations():
    q, k, v = inputs(11, 11)
    time = np.arange(11) // 3
    mask = BlockMask.causal(time, 4, 5)
    mask = dataclasses.replace(
        mask, kv_lengths=jnp.array([[5, 3, 1]]), q_lengths=jnp.array([[4, 2, 3]])
    )
    place = np.arange(11)
    allowed = (time[:, None] >= time[None])[None, None]
    allowed = allowed & (place % 5 < np.array([5, 3, 1])[place // 5])[None, None, None]
    allowed = allowed & (place % 4 < np.array([4, 2, 3])[place // 4])[None, None, :, None]
    np.testing.assert_array_equal(mask.token_mask(), allowed)
    expected = softmax_attention(q, k, v, np.broadcast_to(allowed, (B, N, 11, 11)))
    for implementation in ("reference", "xla"):
        out = attend(q, k, v, mask, implementation)
        np.testing.assert_allclose(out, expected, atol=2e-6)


def test_tokens_without_a_place_are_masked_where_blocks_are_partial():
    mask = BlockMask.causal(np.zeros(6, int), 3, 3)
    hidden = jnp.zeros((1, 6), jnp.int32).at[0, jnp.array([1, 4])].set(-1)
    counts = jnp.array([[[1, 0]]])  # block 0 in full for the first queries, all else in part
    mask = dataclasses.replace(mask, kv_coords=hidden, kv_full_counts=counts)
    expected = np.ones((6, 6), bool)
    expected[:, 4] = expected[3:, 1] = False
    np.testing.assert_array_equal(mask.token_mask()[0, 0], expected)
    q, k, v = inputs(6, 6)
    exact = softmax_attention(q, k, v, np.broadcast_to(expected, (B, N, 6, 6)))
    for implementation in ("reference", "xla"):
        np.testing.assert_allclose(attend(q, k, v, mask, implementation), exact, atol=2e-6)


def test_full_lists_are_dense_attention():
    q, k, v = inputs()
    mask = BlockMask.full(11, 14, 4, 5)
    assert mask.density == 1.0
    for implementation in ("reference", "xla"):
        out = attend(q, k, v, mask, implementation)
        np.testing.assert_allclose(out, dense_attention(q, k, v), atol=1e-6)
    np.testing.assert_array_equal(block_sparse_attention(q, k, v, None), dense_attention(q, k, v))


def test_density_is_the_share_of_pairs_in_listed_blocks():
    blocks = np.zeros((1, 1, *GRID), bool)
    blocks[0, 0, 2, 2] = True  # 3 queries x 4 keys
    mask = BlockMask.from_dense(blocks, **LENGTHS)
    np.testing.assert_allclose(mask.density, 12 / (11 * 14), rtol=1e-6)
    causal = BlockMask.causal(np.arange(4), 2, 2)
    np.testing.assert_allclose(causal.density, 0.75)


def test_narrow_lists_choose_the_gather_and_another_scale_counts():
    q, k, v = inputs(64, 64)
    blocks = np.zeros((1, 1, 16, 16), bool)
    blocks[..., :2] = True
    sizes: dict[str, Any] = {"q_len": 64, "kv_len": 64, "block_q": 4, "block_kv": 4}
    mask = BlockMask.from_dense(blocks, max_blocks=2, **sizes)
    np.testing.assert_array_equal(to_dense(mask), blocks)
    text = attend.lower(q, k, v, mask).as_text()
    assert "64x64" not in text  # nothing quadratic is computed
    out = attend(q, k, v, mask, None, 0.1)
    near = dense_attention(q, k[:, :8], v[:, :8], scale=0.1)
    np.testing.assert_allclose(out, near, atol=1e-6)
    assert np.abs(out - attend(q, k, v, mask)).max() > 1e-2


def test_another_mask_of_equal_shape_does_not_compile_again():
    traces = []

    @jax.jit
    def run(mask):
        traces.append(mask)
        q, k, v = inputs()
        return block_sparse_attention(q, k, v, mask, implementation="xla")

    for seed in range(2):
        blocks = np.random.default_rng(seed).random((1, N, *GRID)) < 0.5
        run.trace(listed(blocks))  # a program is compiled once for a trace
    assert len(traces) == 1


def test_masks_for_other_sizes_are_refused():
    q, k, v = inputs()
    with pytest.raises(ValueError, match="a map of 2 x 3 blocks.*are 3 x 3"):
        BlockMask.from_dense(np.ones((1, 1, 2, 3), bool), **LENGTHS)
    with pytest.raises(ValueError, match="for 12 queries and 14 keys.*11 and 14"):
        block_sparse_attention(q, k, v, BlockMask.full(12, 14, 4, 5))
    many = BlockMask.from_dense(np.ones((1, 2, *GRID), bool), **LENGTHS)
    with pytest.raises(ValueError, match="1 batch rows and 2 heads.*2 and 3"):
        block_sparse_attention(q, k, v, many)
