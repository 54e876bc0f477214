"""What a kernel computes at a time, and what it reads of a mask, as arrays that it can index."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.attention.mosaic_gpu.cells import Cells
from pallas_kernels.attention.mosaic_gpu.sizes import ForwardSizes
from pallas_kernels.block_mask import BlockMask

NEVER = int(np.iinfo(np.int16).max)  # place of a key that no query attends to
ALWAYS = -3  # place of one that all do, in a tile without masked pairs; -2 in others
MASKED = -1e30  # a score; finite, so that a row of masked scores is no NaN
NO_WORDS = np.zeros((1, 1, 1, 1, 32), np.int32)  # where blocks are no cells


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Tiles:
    """How the compute warpgroups of a processor divide their work.

    Tiles of 128 or 192 queries: all warpgroups, two or three, work at one, and share what is
    loaded for it. Tiles of 64: each of two has a tile, a list and a loader of its own.
    """

    q: int
    """Queries of a tile."""
    kv: int
    """Keys of a tile."""
    k_stages: int
    """Tiles of keys in shared memory, per group of warpgroups."""
    v_stages: int
    """The same of values."""
    q_split: int
    """Tiles in a block of queries."""
    kv_split: int
    """Tiles in a block of keys."""

    @classmethod
    def of(cls, mask: BlockMask, sizes: ForwardSizes) -> "Tiles":
        """Returns the tiles for the blocks of a mask, which they divide."""
        return cls(*sizes, q_split=mask.block_q // sizes.q, kv_split=mask.block_kv // sizes.kv)

    @property
    def groups(self) -> int:
        """Tiles at which the compute warpgroups work at one time."""
        return max(128 // self.q, 1)

    @property
    def parts(self) -> int:
        """Warpgroups at one tile."""
        return self.q // 64


class Lists(NamedTuple):
    """A mask as the forward pass reads it.

    Attributes:
        order: i32[4, T], tile of queries `(batch * heads + head) * tiles + tile` that is the
            n-th to be computed, how many tiles of keys it has, before which there are others of
            its list, and where the result of a part of a list goes; -1 for whole ones.
        indices: i32[b, n, Q, M], blocks of keys; where pairs may be masked, twice that, and 1
            more in blocks that are attended to in part.
        q_limits: i32[b, tiles], queries of a tile that count.
        q_places: i16[b, L], a number per query.
        kv_places: i16[b, 2, L], a number per key that may not be above the query's: in blocks
            that are attended to in full, and in others.
        kv_limits: i32[b, tiles], keys of a tile that count, where places do not say it.
        words: i32[b, n, tiles, C, 32], as `Cells.words` returns them.
        skip_log2: f32[B, N, tiles], as in `BlockMask`; None without.
    """

    order: Array
    indices: Array
    q_limits: Array
    q_places: Array
    kv_places: Array
    kv_limits: Array
    words: Array
    skip_log2: Array | None = None


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Kinds:
    """Which restrictions a mask has: what it has not costs nothing."""

    placed: bool
    """Whether places decide over pairs, of blocks attended to in part and of cells cut short."""
    kv_cut: bool
    """Whether tiles of keys may be cut short, at the end of the sequence too."""
    q_cut: bool
    """Whether blocks of queries may be cut short."""
    cell: int
    """Keys of a cell, where cells of tiles are listed; 0 where whole blocks are."""
    divided: int
    """Tiles of queries whose lists are divided among processors, the last ones."""
    parts: int
    """Of each of these lists."""
    skips: bool
    """Whether tiles of keys are left out by their scores: lists are then walked in their order."""

    @property
    def restricted(self) -> bool:
        """Whether a query may find no key in a listed tile."""
        return self.placed or self.kv_cut or self.cell > 0


class Work(NamedTuple):
    """What the forward pass computes: data, and what is part of the program."""

    lists: Lists
    tiles: Tiles
    kinds: Kinds


MOST_PARTS = 8  # of a list
STARTED = 2  # tiles of keys that would be computed while one of queries is begun and ended
JOINED = 16, 0.01  # tiles of keys that would be while parts are joined, and of all time


def prepare(
    mask: BlockMask,
    batch: int,
    heads: int,
    processors: int,
    sizes: ForwardSizes,
    cells: Cells | None = None,
) -> Work:
    """Makes what the forward pass reads of a mask.

    Args:
        mask: Its blocks are multiples of 64.
        batch: Rows of the batch.
        heads: Heads of the queries.
        processors: Streaming multiprocessors of the device.
        sizes: Of its tiles.
        cells: Those that are listed, where the mask lists tiles that have some.
    """
    skips, limits_of_skips = mask.skip_log2 is not None, None
    if mask.skip_log2 is not None:  # queries beyond the end need nothing
        limits_of_skips = jnp.broadcast_to(mask.skip_log2, (batch, heads, mask.grid[0]))
        lengths = jnp.sum(mask.q_counted.reshape(-1, mask.grid[0], mask.block_q), 2, jnp.int32)
        mask = dataclasses.replace(mask, q_lengths=lengths)
    tiles = Tiles.of(mask, sizes)
    count = mask.grid[0] * tiles.q_split
    counted, placed = mask.kv_counted, mask.by_place
    if cells is not None and cells.counted is not None:  # they are cut short anywhere in tiles
        known, placed = cells.counted[:, : counted.shape[1]], True
        counted &= jnp.pad(known, ((0, 0), (0, counted.shape[1] - known.shape[1])))
    workers = processors * tiles.groups
    width = mask.kv_indices.shape[3] * tiles.kv_split
    divided, parts = (0, 1) if skips else division(batch * heads * count, width, workers)
    kinds = Kinds(
        placed=placed,
        kv_cut=mask.cuts_keys and not placed,
        q_cut=mask.q_lengths is not None,
        cell=0 if cells is None else cells.size[1],
        divided=divided,
        parts=parts,
        skips=skips,
    )
    lengths = jnp.broadcast_to(mask.kv_counts, (batch, heads, mask.grid[0]))
    order = _order(lengths.reshape(-1, mask.grid[0]), tiles.q_split, workers)
    steps = jnp.repeat(lengths.reshape(-1), tiles.q_split)[order] * tiles.kv_split
    limits = jnp.zeros((1, count), jnp.int32)
    if mask.q_lengths is not None:
        start = tiles.q * np.arange(tiles.q_split)[None, None]
        limits = (mask.q_lengths[..., None] - start).reshape(-1, count)
    q_places, kv_places = places(mask)
    if placed:
        kv_places = marks_of_keys(kv_places, counted, tiles.kv)
    kv_limits = jnp.sum(counted.reshape(len(counted), -1, tiles.kv), 2, dtype=jnp.int32)
    indices = with_kinds(mask) if placed else mask.kv_indices
    words = jnp.asarray(NO_WORDS) if cells is None else cells.words(tiles.kv)
    turns = _turns(order, steps, divided, parts)
    lists = Lists(turns, indices, limits, q_places, kv_places, kv_limits, words, limits_of_skips)
    return Work(lists, tiles, kinds)


def division(count: int, width: int, workers: int) -> tuple[int, int]:
    """Returns how many lists are divided, the last ones, and into how many parts each.

    They are those left over when all workers have had equally many, or all if there are few, as
    in streams and short videos. Dividing them must pay for joining what the parts attend to.

    Args:
        count: Tiles of queries.
        width: Tiles of keys of each; all lists count as full, for this is part of the program.
        workers: Tiles that are computed at one time.
    """
    last = count % workers

    def time(parts: int) -> float:
        turns = -(-last * parts // workers) * (width / parts + STARTED)
        all_turns = count // workers * (width + STARTED) + turns
        return all_turns if parts == 1 else all_turns * (1 + JOINED[1]) + JOINED[0]

    parts = min(range(1, min(MOST_PARTS, max(width, 1)) + 1), key=time)
    return (last, parts) if parts > 1 else (0, 1)


def _turns(
    order: Int[Array, " T"], steps: Int[Array, " T"], divided: int, parts: int
) -> Int[Array, "4 t"]:
    """Returns `Lists.order`."""
    turns = jnp.stack([order, steps, jnp.zeros_like(order), jnp.full_like(order, -1)])
    if not divided:
        return turns
    ends = steps[-divided:, None] * np.arange(parts + 1)[None] // parts
    begin, lengths = ends[:, :-1].reshape(-1), jnp.diff(ends).reshape(-1)
    places, slots = jnp.repeat(order[-divided:], parts), jnp.arange(divided * parts)
    last = jnp.stack([places, lengths, begin, slots]).astype(jnp.int32)
    return jnp.concatenate([turns[:, :-divided], last], 1)


def joined(
    out: Float[Array, "B Q N D"],
    lse: Float[Array, "B N L"],
    parts: Float[Array, "P q D"],
    parts_lse: Float[Array, "P q"],
    work: Work,
) -> tuple[Float[Array, "B Q N D"], Float[Array, "B N L"]]:
    """Puts in what the parts of divided lists attend to together."""
    count, kinds = parts.shape[1], work.kinds
    if not kinds.divided:
        return out, lse
    parts, parts_lse = (x.reshape(-1, kinds.parts, *x.shape[1:]) for x in (parts, parts_lse))
    total = jax.nn.logsumexp(parts_lse, 1)
    share = jnp.exp(parts_lse - jnp.where(total > -jnp.inf, total, 0.0)[:, None])
    values = jnp.sum(share[..., None] * parts, 1).astype(out.dtype)
    if kinds.divided == lse.size // count:  # all, in their order
        values = values.reshape(*lse.shape, -1).swapaxes(1, 2)
        return values[:, : out.shape[1]], total.reshape(lse.shape)
    place = work.lists.order[0, -kinds.divided * kinds.parts :: kinds.parts, None]
    sequence, index = jnp.divmod(place, lse.shape[2] // count)
    row, head = jnp.divmod(sequence, lse.shape[1])
    tokens = index * count + np.arange(count)[None]
    out = out.at[row, tokens, head].set(values, mode="drop", unique_indices=True)
    return out, lse.at[row, head, tokens].set(total, unique_indices=True)


def marks_of_keys(
    places: Int[Array, "b K"], counted: Bool[Array, "c K"], tile: int
) -> Int[Array, "B 2 K"]:
    """Returns `Lists.kv_places`; that of the last key of a tile says whether all of it count."""
    counted = counted[:, None]
    whole = counted.reshape(len(counted), 1, -1, tile).all(3).repeat(tile, 2)
    both = jnp.stack([jnp.full_like(places, ALWAYS), places], 1)
    both = jnp.where(whole, both, jnp.maximum(both, ALWAYS + 1))
    return jnp.where(counted, both, jnp.int16(NEVER))


def _order(lengths: Int[Array, "S Q"], per_block: int, workers: int) -> Int[Array, " T"]:
    """Orders tiles for workers of which each takes the next when it is done.

    A head's tiles stay together, for its keys and values are in the cache. Within a head the
    longest lists come first, so that all workers end at about one time.
    """
    if lengths.size * per_block <= workers:  # all begin at once
        return jnp.arange(lengths.size * per_block, dtype=jnp.int32)
    longest = jnp.argsort(-lengths, axis=1, stable=True)
    tiles = longest[..., None] * per_block + np.arange(per_block)[None, None]
    starts = per_block * lengths.shape[1] * jnp.arange(len(lengths))[:, None, None]
    return (tiles + starts).reshape(-1).astype(jnp.int32)


def with_kinds(mask: BlockMask) -> Int[Array, "b n Q M"]:
    """Returns twice each listed block, and 1 more where it is attended to in part."""
    if mask.kv_full_counts is None:
        return 2 * mask.kv_indices
    entry = jnp.arange(mask.kv_indices.shape[3])[None, None, None]
    return 2 * mask.kv_indices + (entry >= mask.kv_full_counts[..., None])


def places(mask: BlockMask) -> tuple[Int[Array, "b Q"], Int[Array, "b K"]]:
    """Returns a number per query and per key, up to the end of the last blocks.

    Where blocks are attended to in part, the number of a key may not be above the query's.
    """
    if mask.by_place:
        q_places, kv_places = mask.places(NEVER)
        return q_places.astype(jnp.int16), kv_places.astype(jnp.int16)
    q_blocks, kv_blocks = mask.grid
    nothing = jnp.zeros((1, q_blocks * mask.block_q), jnp.int16)
    return nothing, jnp.zeros((1, kv_blocks * mask.block_kv), jnp.int16)
