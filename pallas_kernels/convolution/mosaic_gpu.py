"""Causal convolution in time, rows and columns for Hopper GPUs, without an image of the taps.

A block of threads per processor stays. Two of its warpgroups compute 64 columns of some rows each
of one frame, the third loads. What is loaded at once are `CHANNELS` channels of all cells that the
tile sees of one frame, with the border around: in shared memory a tap is the same cells from
another address on, so 3 loads serve 27 taps, and 512 cells a load of the weights. Cells outside of
the frame are zeros, which the copy engine fills in; frames before the first come from where they
lie, or are left out. The sums stay in registers up to the end: bias, what is added, the norm over
channels and SiLU are applied to them there.
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxlib.mlir.dialects as dialects
import numpy as np
from jax import lax
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import mma_utils
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, nvvm  # noqa: F401
from jaxtyping import Array, Float

from pallas_kernels.attention.mosaic_gpu.intrinsics import (
    COLUMN,
    FIRST_BARRIER,
    TILE,
    arrive,
    divide,
    launch,
    load,
    pl,
    plgpu,
    sync,
    turns,
)
from pallas_kernels.convolution.reference import SMALLEST, Inputs
from pallas_kernels.convolution.tiles import (
    CHANNELS,
    COLUMNS,
    TAPS,
    Grid,
    Sizes,
    Tile,
    in_order,
    sizes_of,
)

mlir: Any = dialects

SWIZZLE = 2 * CHANNELS
BORDERED = 68  # columns that are loaded: one before, one after, and two so that tiles are aligned
CELLS = 2  # tiles of cells in shared memory
REGISTERS = 240, 24  # of a thread that computes, and of one that loads
THREADS = 2 * 128 + 32  # that compute, and the warp that loads
FETCHED = 128 + 32  # that compute some rows, and the warp that loads what is added to them


def causal_conv(
    inputs: Inputs, plain: bool, processors: int, sizes: Sizes | None = None
) -> tuple[Float[Array, "B T H W D"], ...]:
    """Returns what `convolve` does, of sums in float32 that are rounded at the end.

    Args:
        inputs: Arrays that `refusal` has no reason against.
        plain: Whether the sum itself is a result.
        processors: Streaming multiprocessors of the device.
        sizes: Tiles; None is `sizes_of`.
    """
    x, _, _, before, added, gain = inputs
    (batch, frames, height, width, _), features = x.shape, inputs.bias.shape[0]
    sizes = sizes or sizes_of(features)
    given = {
        name: y.reshape(-1, *y.shape[2:]).astype(x.dtype)
        for name, y in (("before", before), ("added", added))
        if y is not None
    }
    if gain is not None:  # of half the argument: SiLU is h + h tanh(h)
        given["gain"] = gain.astype(jnp.float32) * (features**0.5 / 2)
    grid = Grid.of(inputs, processors, sizes)
    options = _Options(grid, tuple(given), plain, sizes)
    swizzled = (plgpu.SwizzleTransform(SWIZZLE),)
    tiled = (plgpu.TilingTransform((8, CHANNELS)), *swizzled)
    held = (1, sizes.added) if added is not None else (1,)
    out = jax.ShapeDtypeStruct((batch * frames, height, width, features), x.dtype)

    def shared(*shape: int, transforms: Any) -> Any:
        return plgpu.SMEM(shape, x.dtype, transforms=transforms)

    results = launch(
        "causal_conv",
        functools.partial(_kernel, options),
        (out,) * (plain + (gain is not None)),
        [
            shared(CELLS, grid.rows + 2, BORDERED, CHANNELS, transforms=swizzled),
            shared(sizes.taps, TAPS, sizes.features, CHANNELS, transforms=swizzled),
            plgpu.Barrier(num_barriers=CELLS),
            plgpu.Barrier(num_barriers=sizes.taps),
            plgpu.Barrier(num_barriers=2 * sizes.added),
            *(shared(2, rows, COLUMNS, sizes.features, transforms=tiled) for rows in held),
        ],
        {"processor": processors},
    )(
        x.reshape(-1, *x.shape[2:]),
        in_order(inputs.kernel.astype(x.dtype)),
        inputs.bias.astype(jnp.float32),
        *given.values(),
    )
    return tuple(y.reshape(batch, frames, *y.shape[1:]) for y in results)


class _Options(NamedTuple):
    grid: Grid
    given: tuple[str, ...]
    plain: bool
    sizes: Sizes


class _Refs(NamedTuple):
    x: Any
    weights: Any
    bias: Any
    given: dict[str, Any]
    outs: Any
    cell_tiles: Any
    tap_tiles: Any
    cells_full: Any
    taps_full: Any
    added_full: Any
    out_tiles: Any
    added_tiles: Any


def _kernel(options: _Options, *refs: Any) -> None:
    first, count, given = 3, options.plain + ("gain" in options.given), options.given
    outs, tiles = first + len(given), first + len(given) + count
    named = dict(zip(given, refs[first:outs], strict=True))
    rest = refs[tiles:] if "added" in given else (*refs[tiles:], None)
    names = _Refs._make((*refs[:first], named, refs[outs:tiles], *rest))
    warpgroup = lax.axis_index("warpgroup")
    walk = _Walk(options, names, lax.axis_index("processor"))

    def load_all(warp: Any) -> None:
        pl.when(warp == 0)(walk.produce)
        if "added" in given:
            pl.when((warp == 1) | (warp == 2))(lambda: walk.fetch(warp - 1))

    divide(warpgroup, 2, REGISTERS, lambda: walk.compute(warpgroup), load_all)


class _Walk:
    """The tiles of a processor: what those that compute and those that load agree on."""

    def __init__(self, options: _Options, refs: _Refs, processor: Any):
        self.options, self.refs, self.processor = options, refs, processor
        self.grid, self.sizes = options.grid, options.sizes
        self.rows, self.features = options.sizes.rows, options.sizes.features

    def cells_free(self, number: Any) -> Any:
        """Returns the barrier that says that there is room for cells."""
        return FIRST_BARRIER + lax.rem(number, CELLS)

    def taps_free(self, number: Any) -> Any:
        """The same for weights."""
        return FIRST_BARRIER + CELLS + lax.rem(number, self.sizes.taps)

    def added_free(self, warpgroup: Any, row: int) -> Any:
        """The same for what is added to a row of a warpgroup."""
        place = warpgroup * self.sizes.added + row % self.sizes.added
        return FIRST_BARRIER + CELLS + self.sizes.taps + place

    def each_tile(self, visit: Any) -> None:
        """Calls `visit(tile, done)` for all tiles, with the steps that were done before."""

        def advance(turn: Any, done: Any) -> Any:
            tile = self.grid.tile(self.processor + turn * self.grid.together)
            visit(tile, done)
            return done + self.grid.steps(tile)

        count = turns(self.processor, self.grid.total, self.grid.together)
        lax.fori_loop(0, count, advance, jnp.int32(0))

    def produce(self) -> None:
        """Loads the cells and the weights of all tiles, as room for them is made."""
        refs = self.refs

        def visit(tile: Tile, done: Any) -> None:
            def advance(step: Any, state: Any) -> Any:
                number = done + step
                tap, slab, place = self.grid.step(tile, step)
                self.load_cells(tile, tap, slab, number)
                for index in range(TAPS):
                    slot = lax.rem(number * TAPS + index, self.sizes.taps)
                    sync(self.taps_free(number * TAPS + index), THREADS)
                    source, full = refs.weights.at[place + index], refs.taps_full.at[slot]
                    plgpu.copy_gmem_to_smem(source, refs.tap_tiles.at[slot], full)
                return state

            lax.fori_loop(0, self.grid.steps(tile), advance, ())

        self.each_tile(visit)

    def load_cells(self, tile: Tile, tap: Any, slab: Any, number: Any) -> None:
        """Loads channels of the cells that a tile sees of one frame."""
        refs, slot = self.refs, lax.rem(number, CELLS)
        sync(self.cells_free(number), THREADS)
        target, full = refs.cell_tiles.at[slot], refs.cells_full.at[slot]
        rows = pl.ds(tile.row - 1, self.grid.rows + 2)
        columns = pl.ds(tile.column - 1, BORDERED)
        channels = pl.ds(slab * CHANNELS, CHANNELS)

        def copy(source: Any, frame: Any) -> None:
            plgpu.copy_gmem_to_smem(source.at[frame, rows, columns, channels], target, full)

        ago = TAPS - 1 - tap
        if "before" not in refs.given:
            copy(refs.x, tile.frame - ago)
            return
        video = lax.div(tile.frame, self.grid.frames)
        here = tile.time >= ago
        pl.when(here)(lambda: copy(refs.x, tile.frame - ago))
        earlier = video * (TAPS - 1) + tile.time + tap
        pl.when(~here)(lambda: copy(refs.given["before"], earlier))

    def fetch(self, warpgroup: Any) -> None:
        """Loads what is added to the results of a warpgroup."""
        refs, slots = self.refs, self.sizes.added

        def visit(tile: Tile, done: Any) -> None:
            for row in range(self.rows):
                sync(self.added_free(warpgroup, row), FETCHED)
                place = tile.row + warpgroup * self.rows + row  # below the frame nothing is written
                columns = pl.ds(tile.column, COLUMNS)
                source = refs.given["added"].at[tile.frame, place, columns]
                full = refs.added_full.at[warpgroup * slots + row % slots]
                target = refs.added_tiles.at[warpgroup, row % slots]
                plgpu.copy_gmem_to_smem(source, target, full)

        self.each_tile(visit)

    def compute(self, warpgroup: Any) -> None:
        """Computes some rows of all tiles, and writes them."""
        for slot in range(CELLS):
            arrive(self.cells_free(slot), THREADS)
        for slot in range(self.sizes.taps):
            arrive(self.taps_free(slot), THREADS)
        if "added" in self.refs.given:
            for slot in range(self.sizes.added):
                arrive(self.added_free(warpgroup, slot), FETCHED)

        def visit(tile: Tile, done: Any) -> None:
            def advance(step: Any, sums: Any) -> Any:
                for column in range(TAPS):
                    sums = self.multiply(warpgroup, done + step, column, step > 0, sums)
                return sums

            steps = self.grid.steps(tile)
            bias = self.refs.bias.at[pl.ds(0, self.features)]
            bias = load(bias, layout=COLUMN, optimized=False)
            bias = lax.broadcast_in_dim(bias, (COLUMNS, self.features), [1])
            sums = lax.fori_loop(0, steps, advance, (bias,) * self.rows)
            plgpu.wgmma_wait(0)
            sums = lax.optimization_barrier(sums)
            self.release(done + steps - 1, TAPS - 1)
            self.write(tile, warpgroup, sums)

        self.each_tile(visit)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)

    def multiply(self, warpgroup: Any, number: Any, column: int, later: Any, sums: Any) -> Any:
        """Adds the products of the taps of a column, and releases those before."""
        refs, place = self.refs, number * TAPS + column
        cell_slot, tap_slot = lax.rem(number, CELLS), lax.rem(place, self.sizes.taps)
        if column == 0:
            plgpu.barrier_wait(refs.cells_full.at[cell_slot])
        plgpu.barrier_wait(refs.taps_full.at[tap_slot])
        cells = refs.cell_tiles.at[cell_slot, pl.ds(warpgroup * self.rows, self.rows + 2)]
        sums = products(sums, cells, refs.tap_tiles.at[tap_slot], column)
        plgpu.wgmma_wait(1)
        if column:
            self.release(number, column - 1)
        else:
            pl.when(later)(lambda: self.release(number - 1, TAPS - 1))
        return sums

    def release(self, number: Any, column: int) -> None:
        """Tells what loads that weights, and cells with the last of their taps, have been read."""
        arrive(self.taps_free(number * TAPS + column), THREADS)
        if column == TAPS - 1:
            arrive(self.cells_free(number), THREADS)

    def write(self, tile: Tile, warpgroup: Any, sums: Any) -> None:
        """Writes what comes of the rows inside of the frame."""
        refs, given = self.refs, self.refs.given

        def put(out: Any, row: int, parts: Any) -> None:
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            for part, y in zip(chunks, parts, strict=True):
                refs.out_tiles[warpgroup, 0, :, part] = y.astype(out.dtype)
            plgpu.commit_smem()
            place = tile.row + warpgroup * self.rows + row

            @pl.when(place < out.shape[1])
            def _():
                target = out.at[tile.frame, place, pl.ds(tile.column, COLUMNS)]
                plgpu.copy_smem_to_gmem(refs.out_tiles.at[warpgroup, 0], target)

        def activated(part: Any, y: Any, scale: Any) -> Any:
            gain = load(given["gain"].at[part], layout=COLUMN, optimized=False)
            half = y * scale * lax.broadcast_in_dim(gain, y.shape, [1])
            return half + half * jnp.tanh(half)

        starts = range(0, self.features, CHANNELS)
        chunks = [pl.ds(start, CHANNELS) for start in starts]
        for row, total in enumerate(sums):
            parts = [total[:, start : start + CHANNELS] for start in starts]
            if "added" in given:
                slot = row % self.sizes.added
                plgpu.barrier_wait(refs.added_full.at[warpgroup * self.sizes.added + slot])
                tiles = [refs.added_tiles.at[warpgroup, slot, :, part] for part in chunks]
                more = (load(tile, layout=TILE).astype(jnp.float32) for tile in tiles)
                parts = lax.optimization_barrier([x + y for x, y in zip(parts, more, strict=True)])
                arrive(self.added_free(warpgroup, row), FETCHED)
            if self.options.plain:
                put(refs.outs[0], row, parts)
            if "gain" in given:
                power = functools.reduce(jnp.add, (y * y for y in parts)).sum(axis=1)
                scale = lax.rsqrt(jnp.maximum(power, SMALLEST))
                scale = lax.broadcast_in_dim(scale, (COLUMNS, CHANNELS), [0])
                both = zip(chunks, parts, strict=True)
                put(refs.outs[-1], row, (activated(part, y, scale) for part, y in both))


def products(sums: Any, cells: Any, taps: Any, column: int) -> Any:
    """Adds the products of rows of cells and the taps that see them, without waiting.

    Args:
        sums: f32[64, D] for each row of results.
        cells: [rows + 2, columns, K] in shared memory, swizzled.
        taps: [3, D, K], one below the other, the same.
        column: Of the cells, from which 64 are read.
    """
    (_, depth), rows, features = cells.shape[1:], len(sums), taps.shape[1]
    swizzle, transform = 2 * depth, plgpu.SwizzleTransform(2 * depth)
    out = plgpu.ShapeDtypeStruct(sums[0].shape, jnp.float32, layout=TILE)
    refs = (plgpu.RefType((transform,)),) * 2
    pitch = cells.shape[1] * swizzle

    @plgpu.inline_mgpu(arg_types=(*refs, (TILE,) * rows), return_type=(out,) * rows)
    def added(_, cells, taps, sums):
        i32, i64, f32 = (*map(ir.IntegerType.get_signless, (32, 64)), ir.F32Type.get())
        values = [_scalars(x, i32) for x in sums]
        mlir.nvvm.wgmma_fence_aligned()
        a, b = (
            mma_utils.encode_descriptor(
                x, leading_byte_offset=0, stride_byte_offset=8 * swizzle, swizzle=swizzle
            )
            for x in (cells, taps)
        )

        def at(descriptor: Any, offset: int) -> Any:
            return mlir.arith.addi(descriptor, mgpu.c(offset >> 4, i64)) if offset else descriptor

        for start in range(0, swizzle, 32):
            for row, tap in itertools.product(range(rows + TAPS - 1), reversed(range(TAPS))):
                if 0 <= (result := row - tap) < rows:
                    source = at(a, row * pitch + column * swizzle + start)
                    weights = at(b, tap * features * swizzle + start)
                    values[result] = _wgmma(values[result], source, weights, features, f32)
        mlir.nvvm.wgmma_commit_group_sync_aligned()
        return tuple(_tile(x, like) for x, like in zip(values, sums, strict=True))

    return added(cells, taps, sums)


def _scalars(x: Any, i32: Any) -> list[Any]:
    pairs = x.registers.flat
    return [mlir.llvm.extractelement(pair, mgpu.c(i, i32)) for pair in pairs for i in range(2)]


def _tile(values: list[Any], like: Any) -> Any:
    registers, i32 = np.empty_like(like.registers), ir.IntegerType.get_signless(32)
    for index in range(len(values) // 2):
        pair = mlir.llvm.mlir_undef(like.registers.flat[0].type)
        for i in range(2):
            pair = mlir.llvm.insertelement(pair, values[2 * index + i], mgpu.c(i, i32))
        registers.flat[index] = pair
    return mgpu.FragmentedArray(_registers=registers, _layout=like.layout, _is_signed=None)


def _wgmma(held: list[Any], a: Any, b: Any, columns: int, f32: Any) -> list[Any]:
    count = columns // 2
    numbers = ", ".join(f"${i}" for i in range(count))
    text = (
        f"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.bf16.bf16 {{{numbers}}}, "
        f"${2 * count}, ${2 * count + 1}, 1, 1, 1, 0, 0;"
    )
    constraints = ["=f"] * count + [str(i) for i in range(count)] + ["l", "l"]
    struct = mlir.llvm.inline_asm(
        mlir.llvm.StructType.get_literal([f32] * count),
        [*held, a, b],
        text,
        ",".join(constraints),
        has_side_effects=True,
    )
    return [mlir.llvm.extractvalue(f32, struct, [i]) for i in range(count)]
