"""The centroid nearest to each token, on Hopper: scores that are compared where they are computed.

Both compute warpgroups of a processor work at one tile of 128 tokens and share the centroids that
the third loads. Of the scores of 64 tokens and 128 centroids only the best of each token stay.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels.attention.mosaic_gpu.intrinsics import (
    COLUMN,
    FIRST_BARRIER,
    REGISTERS,
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
    sync,
    turns,
)

TILE_SIZE = 128  # tokens and centroids of a tile
ROWS = 64  # tokens of a warpgroup
STAGES = 4  # tiles of centroids in shared memory


def labels(
    x: Float[Array, "B S N D"],
    centroids: Float[Array, "B N C D"],
    less: Float[Array, "B N C"],
    processors: int,
) -> Int[Array, "B N s"]:
    """Returns the centroid of greatest `x . c - less` of each token, the first of equal ones.

    Args:
        x: Tokens, 16 bits; their number is a multiple of 8, `D` is 64 or 128.
        centroids: In the type of the tokens; their number is a multiple of 128.
        less: Half of the squares of the centroids, float32.
        processors: Streaming multiprocessors of the device.

    Returns:
        Numbers of the centroids of tokens up to a multiple of 128.
    """
    batch, tokens, heads, size = x.shape
    return launch(
        "nearest",
        functools.partial(_kernel, processors),
        jax.ShapeDtypeStruct((batch, heads, -(-tokens // TILE_SIZE) * TILE_SIZE), jnp.int32),
        [
            plgpu.SMEM((2, 2, ROWS, size), x.dtype, transforms=SWIZZLE),
            plgpu.SMEM((STAGES, TILE_SIZE, size), x.dtype, transforms=SWIZZLE),
            plgpu.SMEM((2, ROWS), jnp.int32),
            plgpu.Barrier(num_barriers=2, num_arrivals=2),
            plgpu.Barrier(num_barriers=STAGES),
        ],
        {"processor": processors},
    )(x, centroids, less)


class _Refs(NamedTuple):
    x: Any
    centroids: Any
    less: Any
    labels: Any
    x_tiles: Any
    tiles: Any
    found: Any
    x_full: Any
    full: Any


def _kernel(processors: int, *given: Any) -> None:
    refs, warpgroup = _Refs._make(given), lax.axis_index("warpgroup")
    walk = _Walk(refs, lax.axis_index("processor"), processors)
    divide(
        warpgroup,
        2,
        REGISTERS[refs.x.shape[3]],
        lambda: walk.compute(warpgroup),
        lambda warp: pl.when(warp == 0)(walk.produce),
    )


class _Walk:
    """The tiles of tokens of a processor: each meets all centroids of its head."""

    THREADS = 2 * 128 + 32  # that compute, and the warp that loads
    X_FREE, FREE = FIRST_BARRIER, FIRST_BARRIER + 2

    def __init__(self, refs: _Refs, processor: Any, processors: int):
        self.refs, self.processor, self.processors = refs, processor, processors
        self.per_head = refs.labels.shape[2] // TILE_SIZE
        self.total = refs.labels.shape[0] * refs.labels.shape[1] * self.per_head
        self.steps = refs.centroids.shape[2] // TILE_SIZE

    def each_tile(self, visit: Any) -> None:
        """Calls `visit(batch, head, tokens, half, done)`.

        The first token of a tile, which half of the memory its tokens are in, and the steps before.
        """
        heads = self.refs.x.shape[2]

        def advance(turn: Any, done: Any) -> Any:
            sequence = self.processor + turn * self.processors
            index, tile = lax.div(sequence, self.per_head), lax.rem(sequence, self.per_head)
            visit(lax.div(index, heads), lax.rem(index, heads), tile * TILE_SIZE, turn & 1, done)
            return done + self.steps

        lax.fori_loop(0, turns(self.processor, self.total, self.processors), advance, jnp.int32(0))

    def produce(self) -> None:
        """Loads the tokens and centroids of all tiles, as room for them is made."""
        refs = self.refs

        def visit(batch: Any, head: Any, first: Any, half: Any, done: Any) -> None:
            sync(self.X_FREE + half, self.THREADS)
            for part in range(2):
                source = refs.x.at[batch, pl.ds(first + part * ROWS, ROWS), head]
                target, full = refs.x_tiles.at[half, part], refs.x_full.at[half]
                plgpu.copy_gmem_to_smem(source, target, full)

            def load_centroids(step: Any, state: Any) -> Any:
                slot = lax.rem(done + step, STAGES)
                sync(self.FREE + slot, self.THREADS)
                source = refs.centroids.at[batch, head, pl.ds(step * TILE_SIZE, TILE_SIZE)]
                plgpu.copy_gmem_to_smem(source, refs.tiles.at[slot], refs.full.at[slot])
                return state

            lax.fori_loop(0, self.steps, load_centroids, ())

        self.each_tile(visit)

    def compute(self, part: Any) -> None:
        """Finds the centroids of 64 tokens of all tiles."""
        refs = self.refs
        for barrier in range(self.X_FREE, self.FREE + STAGES):
            arrive(barrier, self.THREADS)

        def visit(batch: Any, head: Any, first: Any, half: Any, done: Any) -> None:
            plgpu.barrier_wait(refs.x_full.at[half])

            def compare(step: Any, found: tuple[Array, Array]) -> tuple[Array, Array]:
                slot, start = lax.rem(done + step, STAGES), step * TILE_SIZE
                source = refs.less.at[batch, head, pl.ds(start, TILE_SIZE)]
                less = load(source, layout=COLUMN, optimized=False)
                plgpu.barrier_wait(refs.full.at[slot])

                s = product(refs.x_tiles.at[half, part], refs.tiles.at[slot])
                s = lax.optimization_barrier(s)
                arrive(self.FREE + slot, self.THREADS)
                return _better(s - lax.broadcast_in_dim(less, s.shape, [1]), start, *found)

            worst = plgpu.layout_cast(jnp.full((ROWS,), -jnp.inf, jnp.float32), ROW)
            none = plgpu.layout_cast(jnp.zeros((ROWS,), jnp.int32), ROW)
            _, found = lax.fori_loop(0, self.steps, compare, (worst, none))
            arrive(self.X_FREE + half, self.THREADS)
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the tile before has been read
            refs.found[part] = found
            plgpu.commit_smem()
            target = refs.labels.at[batch, head, pl.ds(first + part * ROWS, ROWS)]
            plgpu.copy_smem_to_gmem(refs.found.at[part], target)

        self.each_tile(visit)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _better(s: Array, start: Any, best: Array, label: Array) -> tuple[Array, Array]:
    """Returns the best score of each row so far, and its column, the first of equal ones."""
    top = jnp.max(s, 1)
    column = plgpu.broadcasted_iota(jnp.int32, s.shape, 1, layout=TILE)
    is_top = s == lax.broadcast_in_dim(top, s.shape, [0])
    last = TILE_SIZE - 1
    place = start + last - jnp.max(jnp.where(is_top, last - column, 0), 1)
    return jnp.maximum(top, best), jnp.where(top > best, place, label)
