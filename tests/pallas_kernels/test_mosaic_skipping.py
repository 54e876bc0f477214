"""Skip-softmax on Hopper: the rule, what kernels lower to, numbers on such a GPU."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import BlockMask, block_sparse_attention, left_out
from pallas_kernels.attention.kernel import attend
from pallas_kernels.attention.mosaic_gpu import MosaicGPU, tiles
from pallas_kernels.attention.mosaic_gpu.skipping import refusal
from pallas_kernels.attention.mosaic_gpu.softmax import Softmax
from pallas_kernels.attention.mosaic_gpu.tiles import prepare
from tests.pallas_kernels.hopper import compiled_for_h200
from tests.pallas_kernels.test_mosaic_gpu import (
    KERNEL,
    distance,
    forward_sizes,
    on_hopper,
    problem,
)


def skipping(case: str, limit: float = -1.5) -> tuple[BlockMask, tuple[Any, ...]]:
    """A problem whose scores differ from block to block, of which some are left out."""
    mask, (q, k, *rest) = problem(case)
    levels = np.resize([1.0, 0.1, 2.0, 0.1], mask.grid[1]).repeat(mask.block_kv)[: mask.kv_len]
    limits = jnp.full((1, 1, mask.grid[0]), limit, jnp.float32)
    k = (k * levels[None, :, None, None]).astype(k.dtype)
    return dataclasses.replace(mask, skip_log2=limits), (q, k, *rest)


@pytest.mark.parametrize("restricted", [False, True])
def test_the_softmax_needs_the_tiles_that_are_not_left_out(restricted):
    draw = np.random.default_rng(0)
    scores = draw.normal(size=(64, 12, 8)) + draw.choice([0.0, -9.0, 3.0], (1, 12, 1))
    if restricted:  # masked pairs, and a row that sees nothing at first
        scores[draw.random(scores.shape) < 0.3] = tiles.MASKED
        scores[0, :4] = tiles.MASKED
    scores, counts = jnp.asarray(scores, jnp.float32), np.arange(64) < 40
    softmax = Softmax.of(0.5, restricted)._replace(growth=0.0)
    peaks = jnp.where(counts[:, None] & (scores > tiles.MASKED).any(2), scores.max(2) / 2, -jnp.inf)
    gone, limits = left_out(peaks, jnp.asarray(-1.0)), jnp.where(counts, -1.0, jnp.inf)
    weights, peak, total = softmax.first(scores[:, 0])
    for tile in range(1, 12):
        top = softmax.top(scores[:, tile])
        needed = bool((top >= peak + limits).any())
        assert needed == (not gone[tile])
        if needed:
            weights, peak, total, _ = softmax.weights(scores[:, tile], top, peak, total)
    assert 1 < gone.sum() < 10 and weights.shape == (64, 8)


def test_lists_with_limits_are_walked_whole_and_end_with_the_queries():
    mask = BlockMask.full(300, 12_800, 128, 128)
    plain = prepare(mask, 2, 3, 132, forward_sizes(mask))
    limits = jnp.asarray([[[-1.0, -2.0, -3.0]]])
    mask = dataclasses.replace(mask, skip_log2=limits)
    lists, _, kinds = prepare(mask, 2, 3, 132, forward_sizes(mask))
    assert plain.kinds.divided and not kinds.divided and kinds.skips and kinds.q_cut
    np.testing.assert_array_equal(lists.skip_log2, jnp.broadcast_to(limits, (2, 3, 3)))
    assert np.asarray(lists.q_limits).tolist() == [[128, 128, 44]]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["plain", "restricted", "small blocks"])
def test_skipping_kernels_for_h200_keep_everything_in_registers(case, tmp_path, monkeypatch):
    mask, (q, k, v, *_) = skipping(case)
    reports = compiled_for_h200(
        lambda *x: attend(KERNEL, *x, mask, 0.1), (q, k, v), tmp_path, monkeypatch
    )
    (ptx,) = [path.read_text() for path in tmp_path.glob("*.ptx")]
    assert ", 128, p; selp" in ptx and "bar.red.or.pred q" in ptx
    assert ("@p bra UNKNOWN" in ptx) == (mask.block_q > 64)  # two warpgroups at a tile
    (report,) = reports
    assert "0 bytes spill stores, 0 bytes spill loads" in report
    assert "C7512" not in report  # serialised products


def test_blocks_that_are_not_tiles_are_not_skipped():
    for blocks, size, served in (
        ((128, 128), 128, True),
        ((64, 64), 128, True),
        ((64, 128), 64, False),  # needs more barriers than there are
        ((256, 128), 128, False),
        ((64, 128), 128, False),
        ((192, 128), 64, False),  # needs more registers
    ):
        mask = BlockMask.full(768, 768, *blocks)
        assert (refusal(mask, forward_sizes(mask, size)) == "") == served


@on_hopper
@pytest.mark.parametrize("case", ["plain", "restricted", "small blocks"])
def test_blocks_are_skipped_by_the_rule(case):
    mask, (q, k, v, *_) = skipping(case)
    out, lse = jax.jit(lambda q, k, v: attend(MosaicGPU(), q, k, v, mask, 0.1))(q, k, v)
    q, k, v = (x.astype("float32") for x in (q, k, v))
    how: Any = {"return_lse": True, "implementation": "xla", "scale": 0.1}
    with jax.default_matmul_precision("highest"):
        exact, exact_lse = block_sparse_attention(q, k, v, mask, **how)
    assert distance(out, exact) < 2 * float(jnp.finfo("bfloat16").eps)
    np.testing.assert_allclose(lse, exact_lse, atol=1e-4)
