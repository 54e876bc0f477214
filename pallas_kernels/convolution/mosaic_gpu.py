"""Causal convolution in time, rows and columns for Hopper GPUs, without an image of the taps.

A block of threads per processor stays. Two of its warpgroups compute some squares of 8 x 8 cells
each of one frame, the third loads. What is loaded at once are `CHANNELS` channels of all cells that
the tile sees of one frame, with the border around: in shared memory a tap is the same cells from
another address on, so 3 loads serve 27 taps, and 512 cells a load of the weights. Cells outside of
the frame are zeros, which the copy engine fills in; frames before the first come from where they
lie, or are left out. The sums stay in registers up to the end: bias, what is added, the norm over
channels and SiLU are applied to them there. A block has 96 features; where a norm is over 192, two
blocks of a cluster tell each other their sums of squares, and over more, XLA applies it.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.attention.mosaic_gpu.intrinsics import (
    COLUMN,
    FIRST_BARRIER,
    ROW,
    arrive,
    divide,
    launch,
    load,
    pl,
    plgpu,
    sync,
    turns,
)
from pallas_kernels.convolution.reference import SMALLEST, Inputs, activated
from pallas_kernels.convolution.squares import (
    fence_cluster,
    load_square,
    products,
    store_remote,
    store_square,
    swizzled,
)
from pallas_kernels.convolution.tiles import (
    CHANNELS,
    SIDE,
    TAPS,
    Grid,
    Sizes,
    Tile,
    in_order,
    sizes_of,
)

BORDER = 4  # columns that are loaded beside a tile: one before, one after, the rest aligns rows
MEMBERS = 2  # blocks of threads at most that have the features of a cell
CELLS = 2  # tiles of cells in shared memory
REGISTERS = 240, 24  # of a thread that computes, and of one that loads
THREADS = 2 * 128 + 32  # that compute, and the warp that loads
FETCHED = 128 + 32  # that compute some squares, and the warp that loads what is added to them


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
    features = inputs.bias.shape[0]
    sizes = sizes or sizes_of(features)
    blocks = features // sizes.features
    if blocks and (inputs.gain is None or blocks <= MEMBERS):
        return _launched(inputs, plain, processors, sizes)
    bare = inputs._replace(gain=None)
    y = _launched(bare, True, processors, sizes)[0] if blocks else _few(bare, processors, sizes)
    active = () if inputs.gain is None else (activated(y, inputs.gain, alone=True),)
    return (y,) * plain + active


@functools.partial(jax.jit, static_argnums=(1, 2, 3))  # equal calls of a program are compiled once
def _launched(
    inputs: Inputs, plain: bool, processors: int, sizes: Sizes
) -> tuple[Float[Array, "B T H W D"], ...]:
    x, _, _, before, added, gain = inputs
    given = {
        name: y.reshape(-1, *y.shape[2:]).astype(x.dtype)
        for name, y in (("before", before), ("added", added))
        if y is not None
    }
    features = inputs.bias.shape[0]
    if gain is not None:  # of half the argument: SiLU is h + h tanh(h)
        given["gain"] = gain.astype(jnp.float32) * (features**0.5 / 2)
    members = 1 if gain is None else features // sizes.features
    grid = Grid.of(inputs, processors // members * members, sizes)
    options = _Options(grid, tuple(given), plain, sizes, members)
    out = jax.ShapeDtypeStruct((math.prod(x.shape[:2]), *x.shape[2:4], features), x.dtype)
    results = launch(
        "causal_conv",
        functools.partial(_kernel, options),
        (out,) * (plain + (gain is not None)),
        _scratch(options, x.dtype),
        {"processor": processors // members},
        cluster={"member": members},
    )(
        x.reshape(-1, *x.shape[2:]),
        in_order(inputs.kernel.astype(x.dtype), sizes.features),
        inputs.bias.astype(jnp.float32),
        *given.values(),
    )
    return tuple(y.reshape(*x.shape[:2], *y.shape[1:]) for y in results)


def _scratch(options: "_Options", dtype: Any) -> list[Any]:
    grid, given, _, sizes, members = options
    chunk, chunks = sizes.chunk, sizes.features // sizes.chunk
    held = (1, sizes.added) if "added" in given else (2,)

    def shared(*shape: int, depth: int) -> Any:
        return plgpu.SMEM((*shape, depth), dtype, transforms=swizzled(depth))

    return [
        shared(CELLS, grid.rows + 2, grid.columns + BORDER, depth=CHANNELS),
        shared(sizes.taps, TAPS, sizes.features, depth=CHANNELS),
        plgpu.Barrier(num_barriers=CELLS),
        plgpu.Barrier(num_barriers=sizes.taps),
        plgpu.Barrier(num_barriers=2 * sizes.added, num_arrivals=chunks),
        plgpu.ClusterBarrier(collective_axes=("member",), num_barriers=4),
        plgpu.SMEM((2, 2, sizes.squares if members > 1 else 1, SIDE * SIDE), jnp.float32),
        *(shared(2, n, chunks, SIDE, SIDE, depth=chunk) for n in held),
    ]


def _few(inputs: Inputs, processors: int, sizes: Sizes) -> Float[Array, "B T H W D"]:
    """Returns the sum of few features: the taps in time are features of a convolution in space."""
    x, kernel, bias, before, added, _ = inputs
    count, features = kernel.shape[0], bias.shape[0]
    kernel = jnp.moveaxis(kernel, 0, -2).reshape(1, *kernel.shape[1:4], -1)
    kernel = jnp.pad(kernel, (*((0, 0),) * 4, (0, sizes.features - kernel.shape[-1])))
    zeros = jnp.zeros(sizes.features, jnp.float32)

    def spread(x: Array) -> Array:
        return causal_conv(Inputs(x, kernel, zeros), True, processors, sizes)[0]

    ago = ((0, 0), (count - 1, 0), (0, 0), (0, 0), (0, 0))
    y = spread(x)
    y = jnp.pad(y, ago) if before is None else jnp.concatenate([spread(before), y], 1)
    y = y.astype(jnp.float32)
    parts = (
        y[:, tap : tap + x.shape[1], ..., tap * features : (tap + 1) * features]
        for tap in range(count)
    )
    total = functools.reduce(jnp.add, parts) + bias.astype(jnp.float32)[None, None, None, None]
    total = total if added is None else total + added.astype(jnp.float32)
    return total.astype(x.dtype)


class _Options(NamedTuple):
    grid: Grid
    given: tuple[str, ...]
    plain: bool
    sizes: Sizes
    members: int  # blocks of threads that have the features of a cell


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
    told: Any
    powers: Any
    out_tiles: Any
    added_tiles: Any


def _kernel(options: _Options, *refs: Any) -> None:
    first, count, given = 3, options.plain + ("gain" in options.given), options.given
    outs, tiles = first + len(given), first + len(given) + count
    named = dict(zip(given, refs[first:outs], strict=True))
    rest = refs[tiles:] if "added" in given else (*refs[tiles:], None)
    names = _Refs._make((*refs[:first], named, refs[outs:tiles], *rest))
    warpgroup = lax.axis_index("warpgroup")
    processor = lax.axis_index("processor") * options.members + lax.axis_index("member")
    walk = _Walk(options, names, processor)

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
        self.squares, self.features = options.sizes.squares, options.sizes.features
        self.chunk = options.sizes.chunk

    def places(self, tile: Tile, warpgroup: Any, square: int) -> list[tuple[Any, ...]]:
        """Returns where the results of a square of a warpgroup are, by chunks of features."""
        wide = self.grid.columns // SIDE
        row = tile.row + warpgroup * (self.grid.rows // 2) + square // wide * SIDE
        column = tile.column + square % wide * SIDE
        starts = range(0, self.features, self.chunk)
        chunks = (pl.ds(tile.block * self.features + start, self.chunk) for start in starts)
        return [(tile.frame, pl.ds(row, SIDE), pl.ds(column, SIDE), part) for part in chunks]

    def cells_free(self, number: Any) -> Any:
        """Returns the barrier that says that there is room for cells."""
        return FIRST_BARRIER + lax.rem(number, CELLS)

    def taps_free(self, number: Any) -> Any:
        """The same for weights."""
        return FIRST_BARRIER + CELLS + lax.rem(number, self.sizes.taps)

    def added_free(self, warpgroup: Any, square: int) -> Any:
        """The same for what is added to a square of a warpgroup."""
        place = warpgroup * self.sizes.added + square % self.sizes.added
        return FIRST_BARRIER + CELLS + self.sizes.taps + place

    def each_tile(self, visit: Any) -> None:
        """Calls `visit(tile, done, turn)` for all tiles, with the steps and tiles done before."""

        def advance(turn: Any, done: Any) -> Any:
            tile = self.grid.tile(self.processor + turn * self.grid.together)
            visit(tile, done, turn)
            return done + self.grid.steps(tile)

        count = turns(self.processor, self.grid.total, self.grid.together)
        lax.fori_loop(0, count, advance, jnp.int32(0))

    def produce(self) -> None:
        """Loads the cells and the weights of all tiles, as room for them is made."""
        refs = self.refs

        def visit(tile: Tile, done: Any, turn: Any) -> None:
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
        columns = pl.ds(tile.column - 1, self.grid.columns + BORDER)
        channels = pl.ds(slab * CHANNELS, CHANNELS)

        def copy(source: Any, frame: Any) -> None:
            plgpu.copy_gmem_to_smem(source.at[frame, rows, columns, channels], target, full)

        ago = self.grid.taps - 1 - tap
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

        def visit(tile: Tile, done: Any, turn: Any) -> None:
            for square in range(self.squares):
                sync(self.added_free(warpgroup, square), FETCHED)
                full = refs.added_full.at[warpgroup * slots + square % slots]
                for part, place in enumerate(self.places(tile, warpgroup, square)):
                    source = refs.given["added"].at[place]
                    target = refs.added_tiles.at[warpgroup, square % slots, part]
                    plgpu.copy_gmem_to_smem(source, target, full)

        self.each_tile(visit)

    def compute(self, warpgroup: Any) -> None:
        """Computes some squares of all tiles, and writes them."""
        for slot in range(CELLS):
            arrive(self.cells_free(slot), THREADS)
        for slot in range(self.sizes.taps):
            arrive(self.taps_free(slot), THREADS)
        if "added" in self.refs.given:
            for slot in range(self.sizes.added):
                arrive(self.added_free(warpgroup, slot), FETCHED)

        def visit(tile: Tile, done: Any, turn: Any) -> None:
            def advance(step: Any, sums: Any) -> Any:
                for column in range(TAPS):
                    sums = self.multiply(warpgroup, done + step, column, step > 0, sums)
                return sums

            steps = self.grid.steps(tile)
            bias = self.refs.bias.at[pl.ds(tile.block * self.features, self.features)]
            bias = load(bias, layout=COLUMN, optimized=False)
            bias = lax.broadcast_in_dim(bias, (SIDE * SIDE, self.features), [1])
            sums = lax.fori_loop(0, steps, advance, (bias,) * self.squares)
            plgpu.wgmma_wait(0)
            sums = lax.optimization_barrier(sums)
            self.release(done + steps - 1, TAPS - 1)
            self.write(tile, warpgroup, sums, lax.rem(turn, 2))

        self.each_tile(visit)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)

    def multiply(self, warpgroup: Any, number: Any, column: int, later: Any, sums: Any) -> Any:
        """Adds the products of the taps of a column, and releases those before."""
        refs, place = self.refs, number * TAPS + column
        cell_slot, tap_slot = lax.rem(number, CELLS), lax.rem(place, self.sizes.taps)
        if column == 0:
            plgpu.barrier_wait(refs.cells_full.at[cell_slot])
        plgpu.barrier_wait(refs.taps_full.at[tap_slot])
        rows = self.grid.rows // 2
        cells = refs.cell_tiles.at[cell_slot, pl.ds(warpgroup * rows, rows + 2)]
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

    def write(self, tile: Tile, warpgroup: Any, sums: Any, parity: Any) -> None:
        """Writes what comes of the cells inside of the frame."""
        refs, given = self.refs, self.refs.given
        puts, outs = itertools.count(), refs.out_tiles.shape[1]

        def put(out: Any, square: int, parts: Any) -> None:
            slot = next(puts) % outs
            plgpu.wait_smem_to_gmem(outs - 1, wait_read_only=True)
            tiles = [refs.out_tiles.at[warpgroup, slot, part] for part in range(len(starts))]
            for part, y in zip(tiles, parts, strict=True):
                store_square(part, y.astype(out.dtype))
            plgpu.commit_smem()
            for part, place in zip(tiles, self.places(tile, warpgroup, square), strict=True):
                plgpu.copy_smem_to_gmem(part, out.at[place], commit_group=part is tiles[-1])

        def activated(start: int, y: Any, scale: Any) -> Any:
            gain = given["gain"].at[pl.ds(tile.block * self.features + start, self.chunk)]
            gain = load(gain, layout=COLUMN, optimized=False)
            half = y * scale * lax.broadcast_in_dim(gain, y.shape, [1])
            return half + half * jnp.tanh(half)

        def normalize(square: int, parts: Any, power: Any) -> None:
            scale = lax.rsqrt(jnp.maximum(power, SMALLEST))
            scale = lax.broadcast_in_dim(scale, (SIDE * SIDE, self.chunk), [0])
            both = zip(starts, parts, strict=True)
            put(refs.outs[-1], square, (activated(start, y, scale) for start, y in both))

        starts, kept = range(0, self.features, self.chunk), []
        for square, total in enumerate(sums):
            parts = [total[:, start : start + self.chunk] for start in starts]
            parts = self.add(parts, warpgroup, square) if "added" in given else parts
            if self.options.plain:
                put(refs.outs[0], square, parts)
            if "gain" in given:
                power = functools.reduce(jnp.add, (y * y for y in parts)).sum(axis=1)
                kept.append((parts, power))
                if self.options.members == 1:
                    normalize(square, parts, power)
        if self.options.members == 2:
            place = refs.powers.at[parity, warpgroup]
            self.tell([power for _, power in kept], place, refs.told.at[2 * warpgroup + parity])
            for square, (parts, power) in enumerate(kept):
                normalize(
                    square, parts, power + load(place.at[square], layout=ROW, optimized=False)
                )

    def add(self, parts: Any, warpgroup: Any, square: int) -> Any:
        """Adds what is to be added to a square."""
        refs, slot = self.refs, square % self.sizes.added
        plgpu.barrier_wait(refs.added_full.at[warpgroup * self.sizes.added + slot])
        tiles = (refs.added_tiles.at[warpgroup, slot, part] for part in range(len(parts)))
        more = (load_square(part).astype(jnp.float32) for part in tiles)
        parts = lax.optimization_barrier([x + y for x, y in zip(parts, more, strict=True)])
        arrive(self.added_free(warpgroup, square), FETCHED)
        return parts

    def tell(self, powers: Any, place: Any, told: Any) -> None:
        """Gives the other block of the cluster sums of squares, and waits for its own."""
        for square, power in enumerate(powers):
            store_remote(place.at[square], power, 1 - lax.axis_index("member"))
        fence_cluster()
        plgpu.barrier_arrive(told)
        plgpu.barrier_wait(told)
        fence_cluster()
