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
from pallas_kernels.attention.pallas_tpu.tiles import Limits
from pallas_kernels.attention.reference import masked_attention
from tests.pallas_kernels.cases import (
    exact_attention,
    random_inputs,
    random_mask,
    token_mask,
)

KERNEL = PallasTPU(interpret=True, limits=Limits(queries=128, keys=128, parts=4))
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


@functools.partial(jax.jit, static_argnums=2)
def answers(inputs, mask, kernel: PallasTPU | None = KERNEL) -> Any:
    """Values, log-sum-exp and their gradients: the kernel's, or of attention under the mask."""
    q, k, v, d_out, d_lse = inputs
    attended = functools.partial(attend, kernel) if kernel else masked_attention
    both, pull = jax.vjp(lambda q, k, v: attended(q, k, v, mask, q.shape[-1] ** -0.5), q, k, v)
    return (*both, pull((d_out.astype(q.dtype), d_lse.astype("float32"))))


@cases
def test_values_and_their_log_sum_exp_are_exact(case):
    for seed in SEEDS:
        mask = mask_of(case, seed)
        inputs = random_inputs(seed, mask)
        out, lse, _ = answers(inputs, mask)
        q, k, v, *_ = inputs
        exact, exact_lse = exact_attention(q, k, v, token_mask(mask))
        assert np.isinf(exact_lse).any()
        np.testing.assert_allclose(out, exact, atol=2e-6)
        np.testing.assert_allclose(lse, exact_lse, atol=2e-6)


@pytest.mark.slow
@cases
def test_gradients_of_both_outputs_are_those_of_the_reference(case):
    for seed in SEEDS:
        mask = mask_of(case, seed)
        inputs = random_inputs(seed, mask)
        (*_, ours), (*_, expected) = (answers(inputs, mask, kernel) for kernel in (KERNEL, None))
        for one, two in zip(ours, expected, strict=True):
            np.testing.assert_allclose(one, two, atol=5e-6)  # NaN is no number that is close


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 136])
def test_in_16_bits_the_error_is_that_of_plain_attention(size):
    mask = random_mask(5, **SIZES)
    inputs = random_inputs(5, mask, size=size, dtype="bfloat16")
    exact, _, true = answers(tuple(x.astype("float32") for x in inputs), mask, None)
    (plain, _, near), (out, _, ours) = (answers(inputs, mask, kernel) for kernel in (None, KERNEL))
    assert out.dtype == jnp.bfloat16
    assert error(out, exact) <= 2 * error(plain, exact)
    for one, two, right in zip(ours, near, true, strict=True):
        assert error(one, right) <= 2 * error(two, right)


def error(x, exact):
    return np.sqrt(np.mean((np.asarray(x, np.float64) - np.asarray(exact, np.float64)) ** 2))


def for_all(mask: BlockMask) -> BlockMask:
    """The lists of a mask for 2 batch rows and 4 heads, as those of "every kind"."""
    lists = ("kv_indices", "kv_counts", "kv_full_counts")
    rows = ("q_lengths", "kv_lengths", "q_coords", "kv_coords")
    sizes = {name: (2, 4) for name in lists} | {name: (2,) for name in rows}
    found = {name: getattr(mask, name) for name in sizes}
    wide = {
        name: jnp.broadcast_to(x, (*sizes[name], *x.shape[len(sizes[name]) :]))
        for name, x in found.items()
    }
    return dataclasses.replace(mask, **wide)


def test_what_is_not_attended_to_is_not_read():
    """Neither keys of no listed block, nor those that a mask cuts, change a bit."""
    mask = for_all(random_mask(6, **SIZES))
    q, k, v, *rest = random_inputs(6, mask)
    seen: Any = np.asarray(token_mask(mask))
    unseen = ~seen.any((0, 1, 2))
    assert 0 < unseen.sum() < 300
    other = (np.where(unseen[None, :, None, None], x, y) for x, y in ((1e4, k), (-1e4, v)))
    one, two = (answers((q, *x, *rest), mask)[:2] for x in (other, (k, v)))
    for ours, same in zip(one, two, strict=True):
        np.testing.assert_array_equal(ours, same)


def test_the_order_of_lists_does_not_matter_and_what_follows_them_neither():
    mask = dataclasses.replace(BlockMask.full(130, 300, 64, 64), causal_time=True)
    inputs = random_inputs(7, mask)

    def run(ids, fewer=0):
        lists = {"kv_indices": ids, "kv_counts": mask.kv_counts - fewer}
        return answers(inputs, dataclasses.replace(mask, **lists))[:2]

    for one, two in zip(run(mask.kv_indices[..., ::-1]), run(mask.kv_indices), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)
    few = (run(ids, 3) for ids in (mask.kv_indices, mask.kv_indices.at[..., 2:].set(0)))
    for one, two in zip(*few, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.slow
def test_keys_and_values_in_vector_memory_give_the_same():
    mask = for_all(random_mask(8, **SIZES))
    inputs = random_inputs(8, mask)
    kernels = (dataclasses.replace(KERNEL, resident=True), KERNEL)
    (*one, ours), (*two, slopes) = (answers(inputs, mask, kernel) for kernel in kernels)
    for x, y in zip(one, two, strict=True):
        np.testing.assert_array_equal(x, y)
    for x, y in zip(ours, slopes, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)


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
