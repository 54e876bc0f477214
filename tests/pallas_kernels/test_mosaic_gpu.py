"""The kernels for Hopper: what they read of a mask, what they lower to, numbers on such a GPU."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import BlockMask, block_sparse_attention, explain
from pallas_kernels.attention import api
from pallas_kernels.attention.kernel import attend
from pallas_kernels.attention.mosaic_gpu import MosaicGPU, tiles
from pallas_kernels.attention.mosaic_gpu.backward import over_shared_heads
from pallas_kernels.attention.mosaic_gpu.cells import in_tiles
from pallas_kernels.attention.mosaic_gpu.cells import refusal as cells_refusal
from pallas_kernels.attention.mosaic_gpu.sizes import BackwardSizes, ForwardSizes
from pallas_kernels.attention.mosaic_gpu.tiles import ALWAYS, NEVER, division, joined, prepare
from pallas_kernels.attention.mosaic_gpu.walks import prepare_walks
from pallas_kernels.attention.xla import queries_gradient
from tests.pallas_kernels.cases import exact_attention, gradients, random_inputs, random_mask
from tests.pallas_kernels.hopper import compiled_for_h200

KERNEL = MosaicGPU(processors=132)
on_hopper = pytest.mark.skipif(
    jax.default_backend() != "gpu" or jax.devices()[0].compute_capability != "9.0",
    reason="needs an H100 or H200",
)

# Lengths, blocks, heads, head size, whether blocks are cut short and attended to in part.
CASES = {
    "plain": (512, 512, 128, 128, 2, 2, 128, False, False),
    "restricted": (500, 424, 128, 128, 4, 2, 128, True, True),
    "small blocks": (500, 424, 64, 64, 4, 2, 128, True, True),
    "large blocks": (452, 553, 256, 64, 4, 1, 64, True, True),
    "split blocks": (452, 553, 64, 256, 2, 2, 80, True, True),
    "three warpgroups": (576, 512, 192, 128, 2, 2, 64, False, False),
    "three, restricted": (500, 424, 384, 128, 4, 2, 48, True, True),
    "odd blocks": (348, 300, 192, 192, 2, 1, 64, False, False),
    "cells": (512, 384, 16, 32, 2, 2, 128, False, False),
    "restricted cells": (500, 424, 16, 16, 4, 2, 64, True, True),
    "cells in part": (420, 330, 48, 136, 2, 1, 80, False, True),
    "least cells": (348, 296, 4, 8, 2, 2, 64, True, False),
    "cells beyond the end": (192, 160, 48, 48, 2, 2, 128, False, False),
}


def problem(case: str, dtype: str = "bfloat16") -> tuple[BlockMask, tuple[Any, ...]]:
    q_len, kv_len, block_q, block_kv, heads, kv_heads, size, cut, places = CASES[case]
    mask = random_mask(
        3, q_len, kv_len, block_q, block_kv, lists=(2, heads), cut=cut, places=places
    )
    if cut and block_kv < 64:  # the last cell of a tile is whole, beside others that are not
        last = slice(128 // block_kv - 1, None, 128 // block_kv)
        lengths = mask.kv_lengths.at[:, last].set(block_kv)
        mask = dataclasses.replace(mask, kv_lengths=lengths)
    return mask, random_inputs(1, mask, heads=heads, kv_heads=kv_heads, size=size, dtype=dtype)


def words_mean(words, cell, width):
    """The pairs in listed cells, `[b, n, C, rows, width]`, from words for every four rows."""
    bits = np.asarray(words)[..., None] >> np.arange(width // cell) & 1
    pairs = bits.repeat(cell, -1).repeat(4, -2).astype(bool)
    pairs = np.moveaxis(pairs, 3, 2)
    return pairs.reshape(*pairs.shape[:3], -1, width)


def forward_sizes(mask: BlockMask, size: int = 128) -> ForwardSizes:
    return ForwardSizes.of("NVIDIA H200", mask.block_q, mask.block_kv, 64 if size <= 64 else 128)


def backward_sizes(mask: BlockMask) -> BackwardSizes:
    return BackwardSizes.of("NVIDIA H200", mask.block_kv, 128)


def seen(lists, places, sizes, keys_have_kinds, words=None):
    """The pairs that lists and places allow, computed as the kernels do, entry by entry."""
    (indices, counts), (low, high), (rows, columns) = lists, places, sizes
    batch, heads, blocks, _ = np.broadcast_shapes(indices.shape, (2, 1, 1, 1))
    allowed = np.zeros((batch, heads, blocks * rows, low.shape[-1]), bool)
    for b, n, i in np.ndindex(batch, heads, blocks):
        for entry in range(counts[b, n, i]):
            j, kind = divmod(indices[b, n, i, entry], 2)
            row, column = slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns)
            if keys_have_kinds:
                pairs = low[b, kind, None, column] <= high[b, row, None]
            else:
                pairs = high[b, row, None] <= low[b, kind, None, column]
            if words is not None:  # of the columns, those in part behind those in full
                width = words.shape[4]
                first = kind * (words.shape[2] // 2) + column.start // width
                split = range(first, first + columns // width)
                of_tile = words[min(b, len(words) - 1), min(n, words.shape[1] - 1)]
                pairs = pairs & np.concatenate([of_tile[i, row] for i in split], 1)
            allowed[b, n, row, column] |= pairs
    return allowed


def batched(array):
    array = np.asarray(array)
    return np.broadcast_to(array, (2, *array.shape[1:]))


@pytest.mark.parametrize("case", CASES)
def test_lists_and_places_allow_the_pairs_of_the_mask(case):
    mask, _ = problem(case)
    tiled, cells = in_tiles(mask)
    sizes = forward_sizes(tiled, CASES[case][6])
    lists, tiles, kinds = prepare(tiled, 2, CASES[case][4], 132, sizes, cells)
    arrays = [batched(x) for x in (lists.indices * (1 if kinds.placed else 2), tiled.kv_counts)]
    sizes = tiled.block_q, tiled.block_kv
    places: list[Any] = [lists.kv_places, lists.q_places]
    if kinds.placed:
        last = batched(lists.kv_places).reshape(2, 2, -1, tiles.kv)
        for_all = last == ALWAYS  # which is read off the last key of a tile
        np.testing.assert_array_equal(for_all[..., -1], for_all.all(3))
    else:
        counted = np.arange(tiles.kv) < np.asarray(lists.kv_limits)[..., None]
        assert kinds.kv_cut or counted.all()
        places[0] = np.where(counted, 0, NEVER).reshape(len(counted), 1, -1)
    words = words_mean(lists.words, kinds.cell, tiles.kv) if kinds.cell else None
    allowed = seen(arrays, [*map(batched, places)], sizes, True, words)[:, :, : mask.q_len]
    assert not allowed[..., mask.kv_len :].any()  # where copies find zeros
    allowed = allowed[..., : mask.kv_len]
    if kinds.q_cut:
        row = np.arange(mask.q_len)
        allowed &= (row % tiles.q < batched(lists.q_limits)[:, row // tiles.q])[:, None, :, None]
    if cells and mask.q_lengths is not None:  # the kernel's values are put right behind it
        allowed &= batched(mask.q_counted)[:, None, : mask.q_len, None]
    np.testing.assert_array_equal(allowed, np.broadcast_to(mask.token_mask(), allowed.shape))


@pytest.mark.parametrize("case", CASES)
def test_walks_are_the_lists_from_the_side_of_the_keys(case):
    mask, _ = problem(case)
    heads = CASES[case][4]
    tiled, cells = in_tiles(mask)
    walks, shape = prepare_walks(tiled, 2, heads, 132, backward_sizes(tiled), cells)
    arrays = [batched(x) for x in (walks.indices * (1 if shape.partial else 2), walks.counts)]
    sizes = tiled.block_kv, tiled.block_q
    places = batched(walks.q_places), batched(walks.kv_places)
    if not shape.partial:  # the kernel reads no places then
        assert mask.kv_full_counts is None
        places = np.full_like(places[0], NEVER), places[1]
    words = words_mean(walks.words, shape.cell, 64) if shape.cell else None
    allowed = seen(arrays, places, sizes, False, words)[:, :, : mask.kv_len, : mask.q_len]
    uncut = dataclasses.replace(mask, q_lengths=None, kv_lengths=None)
    uncut = np.asarray(uncut.token_mask()).swapaxes(2, 3)
    np.testing.assert_array_equal(allowed, np.broadcast_to(uncut, allowed.shape))
    starts = np.asarray(walks.starts)
    counts = np.repeat(np.asarray(walks.counts), shape.kv_split, 2)
    assert np.all((starts >= 0) & (starts <= counts))


def test_walks_begin_where_the_others_are():
    """Long after the start, when tiles end at all times, every place is begun with."""
    draw = np.random.default_rng(0)
    blocks = draw.random((1, 1, 96, 300)) < draw.random((1, 1, 1, 300))
    mask = BlockMask.from_dense(blocks, block_q=64, block_kv=128, q_len=64 * 96, kv_len=128 * 300)
    sizes = backward_sizes(mask)
    walks = jax.jit(lambda mask: prepare_walks(mask, 1, 12, 8, sizes)[0])(mask)
    assert walks.starts.shape == (1, 12, 300)
    assert not np.any(walks.starts[0, 0, :8])  # which begin at once
    begun = np.asarray(walks.starts[0, 6:] / np.maximum(walks.counts[0], 1)).reshape(-1)
    assert np.all(np.abs(np.histogram(begun, 4, (0, 1))[0] / begun.size - 1 / 4) < 0.1)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_gradients_of_shared_keys_are_the_sums_over_the_heads_of_queries(kv_heads):
    """They are added up in float32: in sixteen bits 256 and small numbers are 256."""
    heads = jnp.asarray([256, 0.5, 0.75, 0.25], jnp.bfloat16)[None, None, :, None]
    x = jnp.broadcast_to(heads, (1, 3, 4, 8))
    found = over_shared_heads(x, kv_heads)
    expected = np.asarray(x, np.float32).reshape(1, 3, kv_heads, -1, 8).sum(3)
    np.testing.assert_array_equal(found, expected.astype(found.dtype))


@pytest.mark.parametrize(("count", "workers"), [(96, 8), (256, 132), (16, 132)])
def test_every_tile_is_computed_once_and_workers_end_at_one_time(count, workers):
    draw = np.random.default_rng(0)
    blocks = draw.random((1, 12, count, count)) < draw.random((1, 12, count, 1)) ** 3
    sizes = {"block_q": 128, "block_kv": 128, "q_len": 128 * count, "kv_len": 128 * count}
    mask = BlockMask.from_dense(blocks, **sizes)  # a few long lists
    lists, _, kinds = prepare(mask, 1, 12, workers, forward_sizes(mask))
    order, steps, begin, slots = np.asarray(lists.order)
    assert np.all(np.diff(order // count) >= 0)  # head by head
    np.testing.assert_array_equal(slots[slots >= 0], range(kinds.divided * kinds.parts))
    listed = [[] for _ in range(12 * count)]
    for place, length, first in zip(order, steps, begin, strict=True):
        listed[place] += range(first, first + length)
    assert listed == [[*range(length)] for length in np.asarray(mask.kv_counts).reshape(-1)]
    ended = np.zeros(workers)
    for length in steps:  # each takes the next when it is done
        ended[np.argmin(ended)] += length
    assert count == 16 or np.max(ended) < 1.1 * np.mean(ended)


@pytest.mark.parametrize("workers", [29, 132])
@pytest.mark.parametrize("case", ["large blocks", "three, restricted"])
def test_parts_of_divided_lists_join_to_the_whole(case, workers, monkeypatch):
    """A part is attention under a mask with no more of the list; what joins leaves the rest."""
    monkeypatch.setattr(tiles, "JOINED", (0, 0))
    mask, (q, k, v, *_) = problem(case, "float32")
    rows, heads, width = 2, q.shape[2], q.shape[3]
    work = prepare(mask, rows, heads, workers, forward_sizes(mask, width))
    (lists, sizes, kinds), count = work, work.lists.q_limits.shape[1]
    assert sizes.kv_split == 1 and kinds.parts > 1
    assert kinds.divided == rows * heads * count % workers

    @functools.cache
    @jax.jit
    def attended(begin, steps):
        change = {
            "kv_indices": jnp.roll(mask.kv_indices, -begin, 3),
            "kv_counts": jnp.minimum(mask.kv_counts - begin, steps),
            "kv_full_counts": jnp.clip(mask.kv_full_counts - begin, 0, steps),
        }
        part: Any = dataclasses.replace(mask, **change)
        how: Any = {"return_lse": True, "implementation": "reference"}
        return block_sparse_attention(q, k, v, part, **how)

    whole = attended(0, mask.grid[1])
    out, lse = (np.array(x) for x in whole)
    lse = np.pad(lse, ((0, 0), (0, 0), (0, count * sizes.q - lse.shape[2])))
    parts = np.zeros((kinds.divided * kinds.parts, sizes.q, width), np.float32)
    levels = np.full(parts.shape[:2], -np.inf, np.float32)
    for place, steps, begin, slot in np.asarray(lists.order).T[-len(parts) :]:
        row, head, index = np.unravel_index(place, (rows, heads, count))
        values, level = attended(int(begin), int(steps))
        tokens = slice(index * sizes.q, (index + 1) * sizes.q)
        found = np.asarray(level)[row, head, tokens]
        parts[slot, : len(found)] = np.asarray(values)[row, tokens, head]
        levels[slot, : len(found)] = found
        out[row, tokens, head], lse[row, head, tokens] = np.nan, np.nan
    out, lse, parts, levels = (jnp.asarray(x) for x in (out, lse, parts, levels))
    made, level = joined(out, lse, parts, levels, work)
    np.testing.assert_allclose(made, whole[0], atol=1e-5)
    np.testing.assert_allclose(level[..., : q.shape[1]], whole[1], atol=1e-5)


def test_lists_of_the_last_tiles_are_divided_where_processors_would_wait():
    assert division(16 * 3, 100, 132) == (48, 8)  # a frame of a game, after 32 others
    assert division(12 * 37, 293, 132) == (48, 8)  # three frames of Wan 1.3B, after 18 others
    assert division(12 * 256, 256, 132) == (36, 7)
    assert division(12 * 128, 40, 132) == (0, 1)  # for joining takes longer
    assert division(12 * 592, 592, 132) == (0, 1)  # the last tiles are few of all
    assert division(3, 1, 132) == (0, 1)  # nothing to divide


def both_passes(q, k, v, d_out, d_lse, mask):
    attended, backward = jax.vjp(lambda q, k, v: attend(KERNEL, q, k, v, mask, 0.1), q, k, v)
    return attended, backward((d_out, d_lse))


@pytest.mark.parametrize(
    "case", ["restricted", "split blocks", "restricted cells", "three, restricted"]
)
def test_both_passes_lower_without_a_gpu(case):
    mask, (*arrays, d_lse) = problem(case)
    traced = jax.jit(both_passes).trace(*arrays, d_lse.astype("float32"), mask)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @mosaic_gpu") == 2


class Layer(nn.Module):
    """One layer of a stack that flax scans, as those of networks are."""

    mask: BlockMask

    def __call__(self, x, _):
        attended: Any = attend(KERNEL, x, x, x, self.mask, 0.1)
        return attended[0], None


@pytest.mark.parametrize("layer", [Layer, nn.remat(Layer)])
def test_layers_that_flax_scans_lower_in_the_branch_of_a_condition_and_with_gradients(layer):
    mask = BlockMask.full(128, 128)
    x = jnp.zeros((1, 128, 2, 64), jnp.bfloat16)
    stack = nn.scan(layer, variable_axes={}, split_rngs={}, length=3)(mask)

    def through(x):
        return jax.lax.cond(
            x[0, 0, 0, 0] > 0, lambda x: stack.apply({}, x, None)[0], lambda x: x, x
        )

    def total(x):
        return jnp.sum(through(x), dtype="float32")

    for function, kernels in ((through, 1), (jax.grad(total), 2 if layer is Layer else 3)):
        text = jax.jit(function).trace(x).lower(lowering_platforms=("cuda",)).as_text()
        assert text.count("custom_call @mosaic_gpu") == kernels


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_kernels_for_h200_keep_everything_in_registers(case, tmp_path, monkeypatch):
    monkeypatch.setattr(tiles, "JOINED", (0, 0))
    mask, (*arrays, d_lse) = problem(case)
    inputs = (*arrays, d_lse.astype("float32"), mask)
    reports = compiled_for_h200(both_passes, inputs, tmp_path, monkeypatch)
    assert len(reports) == 2
    for report in reports:
        assert "0 bytes spill stores, 0 bytes spill loads" in report
        assert "C7512" not in report  # serialised products


def test_a_call_without_a_hopper_gpu_is_refused():
    mask, (q, k, v, *_) = problem("plain")
    if jax.default_backend() == "cpu":
        with pytest.raises(NotImplementedError, match="mosaic_gpu: the default device is cpu"):
            block_sparse_attention(q, k, v, mask, implementation="mosaic_gpu")
        assert "no mosaic_gpu" in explain(q, k, mask).reason


@pytest.mark.parametrize(
    "change, text",
    [
        ({"dtype": "float32"}, "float32, not bfloat16"),
        ({"size": 192}, "192 is above 128"),
        ({"block": 6}, "blocks of 6 queries and 6 keys are not multiples of 4"),
    ],
)
def test_what_the_kernels_cannot_serve_has_a_reason(change, text, monkeypatch):
    mask = BlockMask.full(192, 192, change.get("block", 64), change.get("block", 64))
    q, k, *_ = random_inputs(
        0, mask, size=change.get("size", 8), dtype=change.get("dtype", "bfloat16")
    )
    device = type("Device", (), {"compute_capability": "9.0"})
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert text in KERNEL.refusal(q, k, mask)
    assert not KERNEL.refusal(q.astype("bfloat16")[..., :8], k, BlockMask.full(192, 192))
    monkeypatch.setattr(device, "compute_capability", "8.0")
    assert "capability 8.0, not 9.0" in KERNEL.refusal(q, k, mask)


@pytest.mark.parametrize("blocks", [(16, 16), (1560, 1560), (64, 16), (128, 64)])
def test_the_choice_says_which_blocks_are_cells_of_tiles(blocks, monkeypatch):
    mask = BlockMask.full(3120, 3120, *blocks)
    q = jnp.zeros((1, 3120, 1, 128), jnp.bfloat16)
    device = type("Device", (), {"compute_capability": "9.0", "device_kind": "NVIDIA H200"})
    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(api, "backend", lambda: "gpu")
    choice = explain(q, q, mask)
    assert choice.implementation == "mosaic_gpu"
    cells = {(16, 16): "16 x 16", (1560, 1560): "8 x 8", (64, 16): "64 x 16"}.get(blocks)
    said = f"cells of {cells} in tiles of 128 x 128" if cells else "for this device"
    assert said in choice.reason and ("cells" in choice.reason) == bool(cells)


def test_maps_of_cells_that_fill_the_memory_are_refused():
    mask = BlockMask.full(12_000, 12_000, 1500, 1500)
    assert not cells_refusal(mask)
    many = dataclasses.replace(mask, kv_counts=jnp.broadcast_to(mask.kv_counts, (4, 40, 8)))
    assert "1.4e+09 cells of 4 x 4 for 160 heads" in cells_refusal(many)


@on_hopper
def test_other_tiles_serve_cells_too():
    mask, inputs = problem("restricted cells")
    kernel = MosaicGPU(
        forward_sizes=ForwardSizes(64, 64, 3, 2), backward_sizes=BackwardSizes(1, 2, 1)
    )
    results = [
        gradients(lambda q, k, v, one=one: attend(one, q, k, v, mask, 0.1), inputs)
        for one in (MosaicGPU(), kernel)
    ]
    for one, two in zip(*results, strict=True):
        assert distance(one, two) < 2 * float(jnp.finfo("bfloat16").eps)


@on_hopper
@pytest.mark.parametrize("case", ["restricted", "restricted cells"])
def test_keys_that_do_not_count_overflow_nothing_far_below_zero(case):
    mask, inputs = problem(case)
    q, k, *rest = inputs
    inputs = (q + 8, k - 8, *rest)  # all scores are about -700, those of absent keys 0
    slopes = []
    for name, dtype in (("mosaic_gpu", "bfloat16"), ("reference", "float32")):
        how: Any = {"return_lse": True, "implementation": name}
        attended = functools.partial(block_sparse_attention, mask=mask, **how)
        slopes.append(gradients(attended, [x.astype(dtype) for x in inputs]))
    for one, two in zip(*slopes, strict=True):
        assert np.isfinite(np.asarray(one, np.float32)).all()
        assert distance(one, two) < 0.1  # gradients of scores are rounded, and cancel along -8


@on_hopper
@pytest.mark.parametrize(("dtype", "divided"), [("bfloat16", False), ("float16", True)])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_as_exact_as_plain_attention(case, dtype, divided, monkeypatch):
    monkeypatch.setattr(tiles, "JOINED", (0, 0) if divided else (100, 0))
    mask, inputs = problem(case, dtype)
    q, k, v, *_ = inputs
    exact, exact_lse = exact_attention(q, k, v, mask.token_mask())
    scale = inputs[0].shape[-1] ** -0.5
    fast = jax.jit(lambda q, k, v: attend(MosaicGPU(), q, k, v, mask, scale))
    out, lse = fast(*inputs[:3])
    again, _ = fast(*inputs[:3])
    np.testing.assert_array_equal(out, again)
    tolerance = 2 * float(jnp.finfo(dtype).eps)
    assert distance(out, exact) < tolerance
    np.testing.assert_allclose(lse, exact_lse, atol=1e-4)
    wide = [x.astype("float32") for x in inputs]

    def plain(q, k, v):
        return block_sparse_attention(
            q, k, v, mask, return_lse=True, scale=scale, implementation="reference"
        )

    for one, two in zip(gradients(fast, inputs), gradients(plain, wide), strict=True):
        assert distance(one, two) < tolerance


@on_hopper
@pytest.mark.parametrize("case", ["restricted", "small blocks", "split blocks", "restricted cells"])
def test_values_and_gradients_come_back_bit_by_bit(case):
    """Those of queries where that is asked for; 8 samples, so that all processors add to them."""
    mask, inputs = problem(case)
    mask = jax.tree.map(lambda x: jnp.tile(x, (4,) + (1,) * (x.ndim - 1)), mask)
    inputs = tuple(jnp.tile(x, (4,) + (1,) * (x.ndim - 1)) for x in inputs)
    attended = functools.partial(
        block_sparse_attention, return_lse=True, implementation="mosaic_gpu", deterministic=True
    )

    @jax.jit
    def run(q, k, v, d_out, d_lse):
        both, pull = jax.vjp(lambda q, k, v: attended(q, k, v, mask), q, k, v)
        return both, pull((d_out, d_lse.astype("float32")))

    first = jax.tree.leaves(run(*inputs))
    for _ in range(5):
        for one, two in zip(first, jax.tree.leaves(run(*inputs)), strict=True):
            np.testing.assert_array_equal(one, two)


def test_gradients_of_queries_in_one_order_are_those_of_the_reference():
    mask, inputs = problem("restricted", "float32")
    q, k, v, d_out, d_lse = inputs

    def plain(q):
        return block_sparse_attention(
            q, k, v, mask, return_lse=True, scale=0.1, implementation="reference"
        )

    @jax.jit
    def both(q):
        (out, lse), pull = jax.vjp(plain, q)
        delta = jnp.einsum("bqnd,bqnd->bnq", out, d_out) - d_lse
        delta = jnp.pad(delta, ((0, 0), (0, 0), (0, -q.shape[1] % mask.block_q)))
        ours = queries_gradient(q, k, v, mask, 0.1, d_out, delta)
        return ours, pull((d_out, d_lse))[0]

    ours, expected = both(q)
    np.testing.assert_allclose(ours, expected, atol=2e-5)


def distance(one, two):
    one, two = (np.asarray(x, np.float64) for x in (one, two))
    return np.linalg.norm(one - two) / np.linalg.norm(two)
