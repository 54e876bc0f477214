"""How much attention blocks of queries pay to blocks of keys, on Hopper: half a forward pass.

Three warpgroups of a processor compute, each with 64 rows of a tile of queries, and share what the
fourth loads: while one adds up the weights of the keys of a unit, of which a warp writes its part,
the scores of another are computed. A processor has 16 powers of two in a clock, which take as long
as the products of heads of 128.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.attention.mosaic_gpu.intrinsics import (
    FIRST_BARRIER,
    LOG2E,
    REGISTERS_OF_THREE,
    ROW,
    SWIZZLE,
    TILE,
    arrive,
    divide,
    launch,
    load,
    pl,
    plgpu,
    product,
    store_warp_sum,
    sync,
    turns,
)

TILE_SIZE = 128  # keys of a tile
ROWS = 64  # queries of a warpgroup
COMPUTING = 3  # warpgroups
QUERIES = COMPUTING * ROWS  # of a tile
WARPS = 4  # of a warpgroup
WARP_ROWS = ROWS // WARPS  # queries whose weights a warp adds up


def mass(
    q: Float[Array, "B Q N D"],
    k: Float[Array, "B K H D"],
    lse: Float[Array, "B N L"],
    unit: int,
    scale: float,
    keys: int,
    processors: int,
    stages: int,
) -> Float[Array, "B N T U"]:
    """Returns the sum of the weights of 16 queries and the keys of a unit.

    Args:
        q: Queries, 16 bits; their number is a multiple of 8, `D` is 64 or 128.
        k: Keys, as many or a divisor of the heads.
        lse: Log-sum-exp of the scores, up to a multiple of `QUERIES`; inf for a query that does
            not count.
        unit: Keys that are counted together: 16, 32, 64 or 128.
        scale: Factor of the scores.
        keys: Keys that count, from the first.
        processors: Streaming multiprocessors of the device.
        stages: Tiles of keys in shared memory.
    """
    batch, _, heads, size = q.shape
    tiles, units = lse.shape[2] // ROWS, -(-keys // TILE_SIZE) * (TILE_SIZE // unit)
    parts = launch(
        "block_mass",
        functools.partial(_kernel, _Options(unit, scale * LOG2E, keys, processors, stages)),
        jax.ShapeDtypeStruct((batch, heads, tiles, units, WARPS), jnp.float32),
        [
            plgpu.SMEM((COMPUTING, ROWS, size), q.dtype, transforms=SWIZZLE),
            plgpu.SMEM((stages, TILE_SIZE, size), q.dtype, transforms=SWIZZLE),
            plgpu.Barrier(num_arrivals=COMPUTING),
            plgpu.Barrier(num_barriers=stages),
        ],
        {"processor": processors},
        COMPUTING,
    )(q, k, lse * LOG2E)
    return parts.swapaxes(3, 4).reshape(batch, heads, -1, units)


class _Options(NamedTuple):
    unit: int
    scale: float  # of scores, for powers of two
    keys: int
    processors: int
    stages: int


class _Refs(NamedTuple):
    q: Any
    k: Any
    lse: Any
    parts: Any
    q_tiles: Any
    k_tiles: Any
    q_full: Any
    k_full: Any


def _kernel(options: _Options, *refs: Any) -> None:
    names, warpgroup = _Refs._make(refs), lax.axis_index("warpgroup")
    walk = _Walk(options, names, lax.axis_index("processor"))

    divide(
        warpgroup,
        COMPUTING,
        REGISTERS_OF_THREE,
        lambda: walk.compute(warpgroup),
        lambda warp: pl.when(warp == 0)(walk.produce),
    )


class _Walk:
    """The tiles of queries of a processor: each meets all keys, every other time from the last."""

    THREADS = COMPUTING * 128 + 32  # that compute, and the warp that loads
    Q_FREE, K_FREE = FIRST_BARRIER, FIRST_BARRIER + 1

    def __init__(self, options: _Options, refs: _Refs, processor: Any):
        self.options, self.refs, self.processor = options, refs, processor
        self.per_head = refs.lse.shape[2] // QUERIES
        self.total = refs.q.shape[0] * refs.q.shape[2] * self.per_head
        self.steps = -(-options.keys // TILE_SIZE)

    def each_tile(self, visit: Any) -> None:
        """Calls `visit(batch, head, tile, place)`; `place(step)` is the tile of keys of a step."""
        heads, workers = self.refs.q.shape[2], self.options.processors

        def advance(turn: Any, done: Any) -> Any:
            sequence = self.processor + turn * workers
            index, tile = lax.div(sequence, self.per_head), lax.rem(sequence, self.per_head)
            batch, head = lax.div(index, heads), lax.rem(index, heads)
            backwards = (turn & 1) == 1

            def place(step: Any) -> Any:
                return jnp.where(backwards, self.steps - 1 - step, step)

            visit(batch, head, tile, place, done)
            return done + self.steps

        lax.fori_loop(0, turns(self.processor, self.total, workers), advance, jnp.int32(0))

    def produce(self) -> None:
        """Loads the queries and keys of all tiles, as room for them is made."""
        refs = self.refs
        shared_heads = refs.q.shape[2] // refs.k.shape[2]

        def visit(batch: Any, head: Any, tile: Any, place: Any, done: Any) -> None:
            sync(self.Q_FREE, self.THREADS)
            for part in range(COMPUTING):
                rows = pl.ds(tile * QUERIES + part * ROWS, ROWS)
                source = refs.q.at[batch, rows, head]
                plgpu.copy_gmem_to_smem(source, refs.q_tiles.at[part], refs.q_full)

            def load_keys(step: Any, state: Any) -> Any:
                slot = lax.rem(done + step, self.options.stages)
                sync(self.K_FREE + slot, self.THREADS)
                rows = pl.ds(place(step) * TILE_SIZE, TILE_SIZE)
                source = refs.k.at[batch, rows, lax.div(head, shared_heads)]
                plgpu.copy_gmem_to_smem(source, refs.k_tiles.at[slot], refs.k_full.at[slot])
                return state

            lax.fori_loop(0, self.steps, load_keys, ())

        self.each_tile(visit)

    def compute(self, part: Any) -> None:
        """Adds up the weights of 64 queries of all tiles."""
        refs = self.refs
        for slot in range(self.options.stages):
            arrive(self.K_FREE + slot, self.THREADS)
        arrive(self.Q_FREE, self.THREADS)

        def visit(batch: Any, head: Any, tile: Any, place: Any, done: Any) -> None:
            plgpu.barrier_wait(refs.q_full)
            q = refs.q_tiles.at[part]
            rows = pl.ds(tile * QUERIES + part * ROWS, ROWS)
            lse = load(refs.lse.at[batch, head, rows], layout=ROW, optimized=False)
            target = refs.parts.at[batch, head, tile * COMPUTING + part]

            def advance(step: Any, state: Any) -> Any:
                slot = lax.rem(done + step, self.options.stages)
                plgpu.barrier_wait(refs.k_full.at[slot])

                s = lax.optimization_barrier(product(q, refs.k_tiles.at[slot]))
                arrive(self.K_FREE + slot, self.THREADS)
                self.add_up(target, place(step), s, lse)
                return state

            lax.fori_loop(0, self.steps, advance, ())
            arrive(self.Q_FREE, self.THREADS)

        self.each_tile(visit)

    def add_up(self, target: Any, place: Any, s: Array, lse: Array) -> None:
        """Writes the sums of the weights of the units of a tile of keys."""
        p = jnp.exp2(s * self.options.scale - lax.broadcast_in_dim(lse, s.shape, [0]))
        if self.options.keys % TILE_SIZE:
            p = lax.cond(place == self.steps - 1, lambda: self.cut(p), lambda: p)
        unit = self.options.unit
        for number, start in enumerate(range(0, TILE_SIZE, unit)):
            index = place * (TILE_SIZE // unit) + number
            store_warp_sum(target.at[index], p[:, start : start + unit])

    def cut(self, p: Array) -> Array:
        """Leaves nothing of keys behind the last."""
        column = plgpu.broadcasted_iota(jnp.int32, p.shape, 1, layout=TILE)
        return jnp.where(column < self.options.keys % TILE_SIZE, p, 0.0)
