"""What the backward pass reads of a mask: which queries attend to which keys."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from pallas_kernels.attention.mosaic_gpu.cells import Cells
from pallas_kernels.attention.mosaic_gpu.sizes import BackwardSizes
from pallas_kernels.attention.mosaic_gpu.tiles import NEVER, NO_WORDS, places, with_kinds
from pallas_kernels.block_mask import BlockMask

STEP = 64  # queries of a step, and keys of a warpgroup


class Walks(NamedTuple):
    """Which queries attend to each block of keys, as in a transposed mask.

    Attributes:
        indices: i32[b, n, K, M], blocks of queries; with partial blocks, twice that, and 1
            more where not all pairs count.
        counts: i32[b, n, K], how many count.
        starts: i32[B, N, tiles], list entry at which each tile of keys begins.
        q_places: i16[b, 2, L], a number per query: in blocks that are attended to in full, and
            in others.
        kv_places: i16[b, L], a number per key, which may not be above the query's.
        words: i32[b, n, tiles, C, 32], as `Cells.words` returns them, rows are keys.
    """

    indices: Array
    counts: Array
    starts: Array
    q_places: Array
    kv_places: Array
    words: Array


class Shape(NamedTuple):
    """Sizes that the walks of a mask have; static."""

    parts: int
    """Warpgroups that own one tile of keys, of 64 keys each: 1 or 2."""
    q_split: int
    """Steps in a block of queries."""
    kv_split: int
    """Tiles in a block of keys."""
    partial: bool
    """Whether blocks may be attended to in part."""
    q_stages: int
    """Steps of queries in shared memory, for each tile of keys."""
    out_stages: int
    """The same of the gradients of values."""
    cell: int
    """Queries of a cell, where cells of tiles are listed; 0 where whole blocks are."""
    keys_cut: bool
    """Whether some keys do not count, or tiles reach beyond the last."""

    @property
    def groups(self) -> int:
        """Tiles of keys of a block of threads."""
        return 2 // self.parts

    @property
    def keys(self) -> int:
        """Keys of a tile."""
        return STEP * self.parts


def prepare_walks(
    mask: BlockMask,
    batch: int,
    heads: int,
    processors: int,
    sizes: BackwardSizes,
    cells: Cells | None = None,
) -> tuple[Walks, Shape]:
    """Makes what the backward pass reads of a mask.

    Args:
        mask: Its blocks are multiples of 64.
        batch: Rows of the batch.
        heads: Of the queries.
        processors: Streaming multiprocessors of the device.
        sizes: Of its tiles.
        cells: Those that are listed, where the mask lists tiles that have some.
    """
    cells = None if cells is None else cells.transpose()
    turned = mask.transpose() if cells is None else cells.lists(mask)
    shape = Shape(
        parts=sizes.parts,
        q_split=mask.block_q // STEP,
        kv_split=mask.block_kv // (sizes.parts * STEP),
        partial=mask.by_place,
        q_stages=sizes.q_stages,
        out_stages=sizes.out_stages,
        cell=0 if cells is None else cells.size[1],
        keys_cut=mask.cuts_keys or (cells is not None and cells.counted is not None),
    )
    counts = turned.kv_counts
    dealt, at_once = (batch, heads, shape.kv_split), processors * shape.groups
    starts = beginnings(turned.kv_indices, counts, mask.grid[0], dealt, at_once)
    indices = with_kinds(turned) if shape.partial else turned.kv_indices
    q_places, kv_places = places(mask)
    q_places = jnp.stack([jnp.broadcast_to(jnp.int16(NEVER), q_places.shape), q_places], 1)
    words = jnp.asarray(NO_WORDS) if cells is None else cells.words(STEP)
    return Walks(indices, counts, starts, q_places, kv_places, words), shape


def beginnings(
    indices: Int[Array, "b n K M"],
    counts: Int[Array, "b n K"],
    blocks: int,
    sizes: tuple[int, int, int],
    processors: int,
) -> Int[Array, "B N T"]:
    """Returns the list entry with which each tile of keys begins its walk.

    Tiles begin when others end. When, follows from the spread of the counts; a tile then begins
    at the queries that the others read at that time.

    Args:
        indices: Blocks of queries per block of keys.
        counts: How many count.
        blocks: Blocks of queries of the sequence.
        sizes: Batch rows, heads of queries, and tiles in a block of keys.
        processors: Tiles that are computed at one time.
    """
    batch, heads, split = sizes
    spread = jnp.broadcast_to(counts, (batch, heads, counts.shape[2]))
    spread = jnp.repeat(spread, split, axis=2)
    waves = -(-spread.size // processors)
    mean = jnp.maximum(jnp.mean(spread.astype(jnp.float32)), 1e-3)
    deviation = jnp.clip(jnp.std(spread.astype(jnp.float32)) / mean, 0.01, 0.5)
    time = jnp.linspace(0.0, waves + 1.0, 64 * (waves + 1))
    wave = jnp.arange(1, waves + 1, dtype=jnp.float32)
    ended = jax.scipy.stats.norm.cdf(
        (time[:, None] - wave[None]) / (deviation * jnp.sqrt(wave))[None]
    )
    begun = processors * (1 + jnp.sum(ended, 1))
    number = jnp.arange(spread.size)
    front = jnp.where(number < processors, 0.0, jnp.interp(number + 0.5, begun, time)) % 1.0
    place = front.reshape(spread.shape) * blocks
    order = jnp.arange(indices.shape[3])[None, None, None] < counts[..., None]
    listed = jnp.repeat(jnp.where(order, indices, blocks), split, axis=2)
    return jnp.sum(listed < place[..., None], -1, dtype=jnp.int32)
