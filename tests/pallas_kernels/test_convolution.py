"""Causal convolution: what XLA computes, the walk of the kernel for Hopper, what it compiles to."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import causal_conv
from pallas_kernels.attention.mosaic_gpu.intrinsics import plgpu
from pallas_kernels.convolution import api, mosaic_gpu, refusal, tiles
from pallas_kernels.convolution.reference import Inputs, convolve
from tests.pallas_kernels.hopper import compiled_for_h200
from tests.pallas_kernels.test_mosaic_gpu import on_hopper

OTHERS = ((0, 0),) * 4
CAPABILITY = "pallas_kernels.attention.mosaic_gpu.capability"
# Videos, frames, rows, columns, channels, channels of results.
CASES = {
    "one tile": (1, 1, 8, 64, 32, 96),
    "borders": (2, 3, 20, 72, 96, 96),
    "wide": (1, 4, 12, 128, 64, 192),
    "small": (1, 2, 9, 40, 32, 96),
    "three channels": (2, 3, 20, 72, 32, 3),
    "four blocks": (1, 2, 20, 40, 64, 384),
    "narrow": (1, 2, 80, 8, 32, 96),
}


def problem(case, before=True, added=True, gain=True, dtype="bfloat16") -> Any:
    videos, frames, rows, columns, channels, features = CASES[case]
    draw = np.random.default_rng(0)

    def normal(*shape, scale=1.0, dtype=dtype):
        return jnp.asarray(scale * draw.standard_normal(shape, np.float32), dtype)

    size = (rows, columns)
    return Inputs(
        normal(videos, frames, *size, channels),
        normal(3, 3, 3, channels, features, scale=(27 * channels) ** -0.5),
        normal(features, dtype="float32"),
        normal(videos, 2, *size, channels) if before else None,
        normal(videos, frames, *size, features) if added else None,
        1 + normal(features, scale=0.1, dtype="float32") if gain else None,
    )


def exact(inputs, plain=True):
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), inputs)
    with jax.default_matmul_precision("highest"):
        return convolve(wide, plain)


def test_frames_see_themselves_and_the_two_before_them():
    inputs = problem("small", dtype="float32")._replace(gain=None, added=None)
    x = jnp.concatenate([inputs.x, inputs.x + 1], 1)

    def total(x, frame):
        return causal_conv(x, *inputs[1:4])[0][:, frame].sum()

    seen = [np.flatnonzero(jax.grad(total)(x, n).any((0, 2, 3, 4))).tolist() for n in range(4)]
    assert seen == [[0], [0, 1], [0, 1, 2], [1, 2, 3]]


def test_pieces_equal_the_whole_and_zeros_are_before_a_video():
    inputs = problem("borders", dtype="float32", before=False)
    x, more = inputs.x, inputs.added
    whole = causal_conv(x, *inputs[1:3], added=more, gain=inputs.gain)
    pieces, before = [], jnp.zeros_like(x[:, :2])
    for frame in range(x.shape[1]):
        part = slice(frame, frame + 1)
        some = {"added": more[:, part], "gain": inputs.gain}
        y = causal_conv(x[:, part], inputs.kernel, inputs.bias, before, **some)
        pieces.append(y)
        before = jnp.concatenate([before, x[:, part]], 1)[:, -2:]
    for one, parts in zip(whole, zip(*pieces, strict=True), strict=True):
        np.testing.assert_allclose(jnp.concatenate(parts, 1), one, atol=3e-6)


def test_results_are_the_sum_and_its_norm_through_silu():
    inputs = problem("small", dtype="float32")
    both = causal_conv(*inputs[:4], added=inputs.added, gain=inputs.gain)
    (alone,) = causal_conv(*inputs[:4], added=inputs.added, gain=inputs.gain, plain=False)
    (bare,) = causal_conv(*inputs[:4])
    np.testing.assert_allclose(both[0], bare + inputs.added, atol=2e-6)
    y = np.asarray(both[0], np.float64)
    y /= np.sqrt((y**2).mean(-1, keepdims=True))
    y *= np.asarray(inputs.gain)
    np.testing.assert_allclose(alone, y / (1 + np.exp(-y)), atol=3e-6)
    np.testing.assert_array_equal(alone, both[1])
    with pytest.raises(ValueError, match="no result is asked for"):
        causal_conv(*inputs[:4], plain=False)


def walked(inputs, _, processors, sizes):
    """The sums that the tiles of the kernel add up, from what it would load."""
    assert inputs.added is inputs.gain is None
    grid = tiles.Grid.of(inputs, processors, sizes)
    x = np.asarray(inputs.x, np.float32)
    known = inputs.before is not None
    videos, frames, height, width, _ = x.shape
    weights = np.asarray(tiles.in_order(inputs.kernel, sizes.features), np.float32)
    bias = np.asarray(inputs.bias)
    start = inputs.before if known else np.full((videos, 2, *x.shape[2:]), np.nan)
    # Outside of a frame are zeros; of what is before a start nothing may be read.
    border = ((0, 0), (0, 0), (1, grid.rows), (1, grid.columns), (0, 0))
    padded = np.pad(np.concatenate([np.asarray(start, np.float32), x], 1), border)
    size = grid.high * grid.rows, grid.wide * grid.columns
    out = np.full((videos, frames, *size, len(bias)), np.nan, np.float32)
    for tile in zip(*map(np.asarray, jax.vmap(grid.tile)(jnp.arange(grid.total))), strict=True):
        tile = tiles.Tile(*map(int, tile))
        video, sums = tile.frame // frames, np.zeros((grid.rows, grid.columns, sizes.features))
        for step in range(int(grid.steps(tile))):
            tap, slab, place = map(int, grid.step(tile, step))
            rows = slice(tile.row, tile.row + grid.rows + 2)
            cells = padded[video, tile.time + 3 - grid.taps + tap, rows, tile.column :]
            cells = cells[..., slab * 32 : slab * 32 + 32]
            for column, below, row in np.ndindex(3, 3, grid.rows):
                seen = cells[row + below, column : column + grid.columns]
                sums[row] += seen @ weights[place + column, below].T
        target = out[video, tile.time, tile.row : tile.row + grid.rows]
        target = target[:, tile.column : tile.column + grid.columns]
        target = target[..., tile.block * sizes.features :][..., : sizes.features]
        assert np.isnan(target).all(), "a tile is computed twice"
        target[:] = sums + bias[tile.block * sizes.features :][: sizes.features]
    return (jnp.asarray(out[:, :, :height, :width]),)


@pytest.mark.parametrize("processors", [132, 2])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_tiles_add_up_to_the_convolution(case, before, processors, monkeypatch):
    monkeypatch.setattr(mosaic_gpu, "_launched", walked)
    inputs = problem(case, before, added=False, gain=False, dtype="float32")
    (ours,) = mosaic_gpu.causal_conv(inputs, True, processors)
    np.testing.assert_allclose(ours, exact(inputs)[0], atol=1e-4)


@pytest.mark.parametrize("case", ["three channels", "four blocks"])
def test_what_the_kernel_leaves_to_xla_is_of_its_sums(case, monkeypatch):
    def launched(inputs, plain, *_):
        assert inputs.gain is None, "a norm of more features than two blocks have"
        taps = 3 - inputs.kernel.shape[0]
        return convolve(inputs._replace(kernel=jnp.pad(inputs.kernel, ((taps, 0), *OTHERS))), plain)

    monkeypatch.setattr(mosaic_gpu, "_launched", launched)
    inputs = problem(case, dtype="float32")
    for plain in (True, False):
        found = mosaic_gpu.causal_conv(inputs, plain, 132)
        for ours, wanted in zip(found, exact(inputs, plain), strict=True):
            np.testing.assert_allclose(ours, wanted, atol=1e-5)


def test_a_barrier_waits_for_all_copies_of_a_square():
    inputs, sizes = problem("small"), tiles.sizes_of(96)
    grid = tiles.Grid.of(inputs, 132, sizes)
    options = mosaic_gpu._Options(grid, ("added",), True, sizes, 1)
    walk = mosaic_gpu._Walk(options, mosaic_gpu._Refs._make((None,) * 14), 0)
    barriers = [y for y in mosaic_gpu._scratch(options, jnp.bfloat16) if type(y) is plgpu.Barrier]
    assert barriers[-1].num_arrivals == len(walk.places(grid.tile(0), 1, 2))


@pytest.mark.parametrize("case", CASES)
def test_what_a_block_shares_fits_in_its_memory(case):
    sizes = tiles.sizes_of(CASES[case][-1])
    grid = tiles.Grid.of(problem(case), 132, sizes)
    options = mosaic_gpu._Options(grid, ("before", "added", "gain"), True, sizes, 2)
    parts = [y for y in mosaic_gpu._scratch(options, jnp.bfloat16) if hasattr(y, "transforms")]
    # Of an H100 or H200; a part begins at a multiple of 1,024 bytes.
    assert sum(-(-math.prod(y.shape) * y.dtype.itemsize // 1024) for y in parts) < 227


@pytest.mark.parametrize(
    ("shape", "dtype", "features", "text"),
    [
        ((1, 2, 8, 64, 96), "float32", 96, "the frames are float32, not bfloat16"),
        ((1, 2, 8, 64, 48), "bfloat16", 96, "48 channels are no multiple of 32"),
        ((1, 2, 8, 64, 96), "bfloat16", 64, "results have 64 channels, not one of 3, 96, 192, 384"),
        ((1, 2, 8, 60, 96), "bfloat16", 96, "or 60 columns of 8"),
        ((1, 2, 8, 64, 96), "bfloat16", 192, ""),
    ],
)
def test_what_the_kernel_cannot_serve_has_a_reason(shape, dtype, features, text, monkeypatch):
    x = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
    if jax.default_backend() == "cpu":
        inputs = problem("small")
        assert refusal(x, features) == "the default device is cpu, not gpu"
        with pytest.raises(NotImplementedError, match="mosaic_gpu: the default device is cpu"):
            causal_conv(*inputs[:4], implementation="mosaic_gpu")
    monkeypatch.setattr(api, "backend", lambda: "gpu")
    monkeypatch.setattr(CAPABILITY, lambda: "8.0")
    assert "compute capability 8.0, not 9.0" in refusal(x, features)
    monkeypatch.setattr(CAPABILITY, lambda: "9.0")
    found = refusal(x, features)
    assert text in found
    assert bool(found) == bool(text)


def test_gradients_are_those_of_the_convolution_by_xla(monkeypatch):
    inputs = problem("small", dtype="float32")
    monkeypatch.setattr(api, "refusal", lambda *_: "")
    monkeypatch.setattr(mosaic_gpu, "causal_conv", lambda inputs, plain, _: convolve(inputs, plain))

    def total(implementation, inputs):
        more = {"added": inputs.added, "gain": inputs.gain}
        both = causal_conv(*inputs[:4], **more, implementation=implementation)
        return sum(jnp.sin(y).sum() for y in both)

    monkeypatch.setattr(api, "_processors", lambda: 132)
    one, two = (jax.grad(lambda x, name=name: total(name, x))(inputs) for name in (None, "xla"))
    for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert jnp.abs(ours - theirs).max() < 1e-5 * jnp.abs(theirs).max()


@pytest.mark.parametrize("platform", ["cuda"])
def test_the_kernel_lowers_without_a_gpu(platform):
    inputs = problem("borders")
    conv = jax.jit(lambda inputs: mosaic_gpu.causal_conv(inputs, True, 132))
    text = conv.trace(inputs).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("@mosaic_gpu") == 1


def test_a_sum_is_compiled_once_whatever_xla_makes_of_it():
    inputs = problem("four blocks")

    def both(inputs):
        normed = mosaic_gpu.causal_conv(inputs, False, 132)
        return normed, mosaic_gpu.causal_conv(inputs._replace(gain=None), True, 132)

    text = jax.jit(both).trace(inputs).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@mosaic_gpu") == 1


@pytest.mark.slow
@pytest.mark.parametrize("case", ["borders", "wide"])
@pytest.mark.parametrize("more", [False, True])
def test_sums_for_h200_stay_in_registers(case, more, tmp_path, monkeypatch):
    inputs = problem(case, added=more)
    (report,) = compiled_for_h200(
        lambda inputs: mosaic_gpu.causal_conv(inputs, more, 132),
        (inputs,),
        tmp_path,
        monkeypatch,
    )
    # Sums are 192 registers of a thread, 768 bytes; what else is there at the end gives way.
    (spilled,) = re.findall(r"stack frame, (\d+) bytes spill stores", report)
    assert int(spilled) <= (512 if more else 128)
    assert "C75" not in report


@on_hopper
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("case", [name for name in CASES if CASES[name][-1] in tiles.SEEN])
def test_results_are_as_exact_as_those_of_xla(case, before):
    inputs = problem(case, before)
    more = {"added": inputs.added, "gain": inputs.gain}
    ours = causal_conv(*inputs[:4], **more, implementation="mosaic_gpu")
    plain = causal_conv(*inputs[:4], **more, implementation="xla")
    for one, two, wanted in zip(ours, plain, exact(inputs), strict=True):
        errors = [jnp.abs(y.astype(jnp.float32) - wanted).max() for y in (one, two)]
        assert errors[0] < 2 * errors[1] + 0.01
