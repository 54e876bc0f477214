"""The kernels for TPUs, interpreted: values, log-sum-exp and gradients for masks of every kind."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import BlockMask, block_sparse_attention
from pallas_kernels.attention.kernel import attend
from pallas_kernels.attention.pallas_tpu import PallasTPU
from pallas_kernels.attention.reference import masked_attention
from tests.pallas_kernels.cases import exact_attention, random_inputs, random_mask

KERNEL = PallasTPU(interpret=True, queries=128, keys=128)
SIZES: dict[str, Any] = {"q_len": 130, "kv_len": 300, "block_q": 64, "block_kv": 64}
SEEDS = range(4)  # of masks of one shape, which compiles once

# q_len, kv_len, block_q, block_kv: two blocks to a step; two tiles and two pieces to a block.
MASKS: dict[str, dict[str, Any]] = {
    "every kind": {"sizes": (130, 300, 64, 64), "lists": (2, 4)},
    "shared by all": {"sizes": (130, 300, 64, 64), "cut": False, "places": False},
    "shared by heads": {"sizes": (300, 520, 256, 256), "lists": (2, 1), "places": False},
    "shared by batch rows": {"sizes": (300, 520, 256, 256), "lists": (1, 4), "cut": False},
}
cases = pytest.mark.parametrize("case", MASKS)


def mask_of(case: str, seed: int) -> BlockMask:
    kind = dict(MASKS[case])
    q_len, kv_len, block_q, block_kv = kind.pop("sizes")
    return random_mask(seed, q_len, kv_len, block_q, block_kv, **kind)


@functools.partial(jax.jit, static_argnums=(4, 5))
def run(q, k, v, mask, kernel=KERNEL, scale=None) -> Any:
    return attend(kernel, q, k, v, mask, scale or q.shape[-1] ** -0.5)


@functools.partial(jax.jit, static_argnums=2)
def slopes(inputs, mask, kernel) -> Any:
    """Gradients of output and log-sum-exp together; the kernel, or attention under the mask."""
    *arrays, d_out, d_lse = inputs

    def total(q, k, v):
        scale = q.shape[-1] ** -0.5
        if kernel:
            out, lse = run(q, k, v, mask, kernel, scale)
        else:
            out, lse = masked_attention(q, k, v, mask, scale)
        lse = jnp.where(lse > -jnp.inf, lse, 0.0)
        return jnp.vdot(out.astype("float32"), d_out) + jnp.vdot(lse, d_lse)

    return jax.grad(total, (0, 1, 2))(*arrays)


@cases
def test_values_and_their_log_sum_exp_are_exact(case):
    for seed in SEEDS:
        mask = mask_of(case, seed)
        q, k, v, *_ = random_inputs(seed, mask)
        out, lse = run(q, k, v, mask)
        exact, exact_lse = exact_attention(q, k, v, mask.token_mask())
        assert np.isinf(exact_lse).any()
        np.testing.assert_allclose(out, exact, atol=2e-6)
        np.testing.assert_allclose(lse, exact_lse, atol=2e-6)


@pytest.mark.slow
@cases
def test_gradients_of_both_outputs_are_those_of_the_reference(case):
    for seed in SEEDS:
        mask = mask_of(case, seed)
        inputs = random_inputs(seed, mask)
        expected = slopes(inputs, mask, None)
        for one, two in zip(slopes(inputs, mask, KERNEL), expected, strict=True):
            np.testing.assert_allclose(one, two, atol=5e-6)  # NaN is no number that is close


@pytest.mark.parametrize("size", [64, 136])
def test_in_16_bits_the_error_is_that_of_plain_attention(size):
    mask = random_mask(5, **SIZES)
    inputs = random_inputs(5, mask, size=size, dtype="bfloat16")
    q, k, v, d_out, d_lse = inputs
    exact, _ = exact_attention(q, k, v, mask.token_mask())
    plain, _ = masked_attention(q, k, v, mask, size**-0.5)
    out, _ = run(q, k, v, mask)
    assert out.dtype == jnp.bfloat16
    assert error(out, exact) <= 2 * error(plain, exact)
    wide = tuple(x.astype("float32") for x in inputs)
    true = slopes(wide, mask, None)
    one, two = (slopes((q, k, v, *wide[3:]), mask, kernel) for kernel in (KERNEL, None))
    for ours, theirs, right in zip(one, two, true, strict=True):
        assert error(ours, right) <= 2 * error(theirs, right)


def error(x, exact):
    return np.sqrt(np.mean((np.asarray(x, np.float64) - np.asarray(exact, np.float64)) ** 2))


def test_what_is_not_attended_to_is_not_read():
    """Neither keys of no listed block, nor those that a mask cuts, change a bit."""
    mask = random_mask(6, **SIZES)
    q, k, v, *_ = random_inputs(6, mask)
    unseen = ~np.asarray(mask.token_mask()).any((1, 2))[0]  # pyright: ignore[reportIndexIssue]
    assert 0 < unseen.sum() < 300
    other = (
        jnp.where(unseen[None, :, None, None], 1e4, k),
        jnp.where(unseen[None, :, None, None], -1e4, v),
    )
    for one, two in zip(run(q, *other, mask), run(q, k, v, mask), strict=True):
        np.testing.assert_array_equal(one, two)


def test_the_order_of_lists_does_not_matter_and_what_follows_them_neither():
    mask = BlockMask.full(130, 300, 64, 64)
    q, k, v, *_ = random_inputs(7, mask)
    turned = BlockMask(mask.kv_indices[..., ::-1], mask.kv_counts, **SIZES)
    for one, two in zip(run(q, k, v, turned), run(q, k, v, mask), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)
    few = [
        BlockMask(ids, mask.kv_counts - 3, **SIZES)
        for ids in (mask.kv_indices, mask.kv_indices.at[..., 2:].set(0))
    ]
    for one, two in zip(*(run(q, k, v, x) for x in few), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.slow
def test_keys_and_values_in_vector_memory_give_the_same():
    mask = random_mask(8, **SIZES)
    inputs = random_inputs(8, mask)
    kernel = dataclasses.replace(KERNEL, resident=True)
    for one, two in zip(run(*inputs[:3], mask, kernel), run(*inputs[:3], mask), strict=True):
        np.testing.assert_array_equal(one, two)
    one, two = (slopes(inputs, mask, x) for x in (kernel, KERNEL))
    for ours, theirs in zip(one, two, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_what_cannot_be_served_is_refused_with_the_reason():
    q = jnp.zeros((1, 64, 2, 8), jnp.float16)
    mask = BlockMask.full(64, 64, 64, 64)
    with pytest.raises(NotImplementedError, match="pallas_tpu: the default device is cpu, not tpu"):
        block_sparse_attention(q, q, q, mask, implementation="pallas_tpu")
    assert "the default device is cpu, not a TPU from v4" in PallasTPU().refusal(q, q, mask)
    assert "the inputs are float16" in KERNEL.refusal(q, q, mask)
    q = q.astype("float32")
    assert KERNEL.refusal(q, q, mask) == ""
    for block in (24, 200):
        reason = KERNEL.refusal(q, q, BlockMask.full(64, 64, 64, block))
        assert f"blocks of {block} tokens: they must be a multiple of 16" in reason
