"""What a kernel computes at a time, and what it reads of a mask, as arrays that it can index."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from pallas_kernels.attention.mosaic_gpu.cells import Cells
from pallas_kernels.attention.mosaic_gpu.intrinsics import CHUNK
from pallas_kernels.attention.mosaic_gpu.sizes import ForwardSizes
from pallas_kernels.block_mask import BlockMask

NEVER = int(np.iinfo(np.int16).max)  # place of a key that no query attends to
ALWAYS = -3  # place of one that all do, in a tile without masked pairs; -2 in others
MASKED = -1e30  # a score; finite, so that a row of masked scores is no NaN
BESIDE = 2.0**-100  # added to scores of keys that count, in tiles with others that do not
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
        order: i32[2, T], tile of queries `(batch * heads + head) * tiles + tile` that is the
            n-th to be computed, and how many tiles of keys it has.
        indices: i32[b, n, Q, M], blocks of keys; where pairs may be masked, twice that, and 1
            more in blocks that are attended to in part.
        q_limits: i32[b, tiles], queries of a tile that count.
        q_places: i16[b, L], a number per query.
        kv_places: i16[b, 2, L], a number per key that may not be above the query's: in blocks
            that are attended to in full, and in others. Without places bf16[b, 1, L]: what is
            added to the scores of a key.
        words: i32[b, n, tiles, C, 32], as `Cells.words` returns them.
    """

    order: Array
    indices: Array
    q_limits: Array
    q_places: Array
    kv_places: Array
    words: Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Kinds:
    """Which restrictions a mask has: what it has not costs nothing."""

    masked: bool
    """Whether pairs may be masked within blocks, at the end of the sequence too."""
    placed: bool
    """Whether places decide over pairs of blocks that are attended to in part."""
    q_cut: bool
    """Whether blocks of queries may be cut short."""
    cell: int
    """Keys of a cell, where cells of tiles are listed; 0 where whole blocks are."""
    list_parts: int = 1
    """Of every list; each has rows of its own in `Lists`, and in what the kernel returns."""

    @property
    def restricted(self) -> bool:
        """Whether a query may find no key in a listed tile."""
        return self.masked or self.cell > 0


class Work(NamedTuple):
    """What the forward pass computes: data, and what is part of the program."""

    lists: Lists
    tiles: Tiles
    kinds: Kinds


MOST_PARTS = 8  # of a list
STARTED = 2  # tiles of keys that would be computed while one of queries is begun and ended
JOINED = 0.03  # of all time, that it takes to join one more part


def parts_of(mask: BlockMask, sequences: int, processors: int, sizes: ForwardSizes) -> int:
    """Returns into how many parts lists are divided, so that no processor waits long.

    Few queries and many keys (streams, short videos) have fewer tiles than there are processors.

    Args:
        mask: Its lists count as full.
        sequences: Heads of all rows of the batch.
        processors: Streaming multiprocessors of the device.
        sizes: Of its tiles.
    """
    tiles = Tiles.of(mask, sizes)
    width, workers = mask.kv_indices.shape[3], processors * tiles.groups
    count = sequences * mask.grid[0] * tiles.q_split

    def time(parts: int) -> float:
        turns = -(-count * parts // workers)
        return turns * (width * tiles.kv_split / parts + STARTED) * (1 + JOINED * (parts - 1))

    return min(range(1, min(MOST_PARTS, max(width, 1)) + 1), key=time)


def in_parts(mask: BlockMask, batch: int, parts: int) -> BlockMask:
    """Returns the mask of a batch whose rows are `parts` each, with as many parts of every list."""
    if parts == 1:
        return mask
    indices, counts = mask.kv_indices[:, None], mask.kv_counts[:, None]
    ends = counts * np.arange(parts + 1)[None, :, None, None] // parts
    begin, lengths = ends[:, :-1], ends[:, 1:] - ends[:, :-1]
    most = -(-indices.shape[4] // parts)
    entries = begin[..., None] + np.arange(most)[None, None, None, None]
    ids = jnp.take_along_axis(indices, jnp.minimum(entries, indices.shape[4] - 1), 4)

    def rows(x: Array) -> Array:
        return jnp.broadcast_to(x, (batch, *x.shape[1:])).reshape(-1, *x.shape[2:])

    def repeated(x: Array | None) -> Array | None:
        return x if x is None or len(x) == 1 else jnp.repeat(x, parts, 0)

    full = mask.kv_full_counts
    if full is not None:
        full = rows(jnp.clip(full[:, None] - begin, 0, lengths))
    rest = ("q_lengths", "kv_lengths", "q_coords", "kv_coords")
    same: dict[str, Any] = {name: repeated(getattr(mask, name)) for name in rest}
    lists = {"kv_indices": rows(ids), "kv_counts": rows(lengths), "kv_full_counts": full}
    return dataclasses.replace(mask, **lists, **same)


def joined(
    out: Float[Array, "P Q N D"], lse: Float[Array, "P N L"], parts: int
) -> tuple[Float[Array, "B Q N D"], Float[Array, "B N L"]]:
    """Returns what the parts of a list attend to together."""
    if parts == 1:
        return out, lse
    out, lse = (x.reshape(-1, parts, *x.shape[1:]) for x in (out, lse))
    total = jax.nn.logsumexp(lse, 1)
    share = jnp.exp(lse - jnp.where(total > -jnp.inf, total, 0.0)[:, None])[..., : out.shape[2]]
    values = jnp.einsum("bpnq,bpqnd->bqnd", share, out.astype(jnp.float32))
    return values.astype(out.dtype), total


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
    tiles = Tiles.of(mask, sizes)
    count = mask.grid[0] * tiles.q_split
    counted = mask.kv_counted if mask.cuts_keys else None
    if cells is not None:
        counted = cells.counted  # of all parts of a row of the batch
        counted = counted if counted is None else counted.repeat(batch // len(counted), 0)
    kinds = Kinds(
        masked=mask.by_place or counted is not None,
        placed=mask.by_place,
        q_cut=mask.q_lengths is not None,
        cell=0 if cells is None else cells.size[1],
    )
    lengths = jnp.broadcast_to(mask.kv_counts, (batch, heads, mask.grid[0]))
    workers = processors * tiles.groups
    order = _order(lengths.reshape(-1, mask.grid[0]), tiles.q_split, workers)
    steps = jnp.repeat(lengths.reshape(-1), tiles.q_split)[order] * tiles.kv_split
    limits = jnp.zeros((1, count), jnp.int32)
    if mask.q_lengths is not None:
        start = tiles.q * np.arange(tiles.q_split)[None, None]
        limits = (mask.q_lengths[..., None] - start).reshape(-1, count)
    q_places, kv_places = places(mask)
    if counted is None:
        counted = jnp.ones((1, kv_places.shape[1]), bool)
    kv_places = marks_of_keys(kv_places, counted, kinds.placed, tiles.kv)
    indices = with_kinds(mask) if kinds.placed else mask.kv_indices
    words = jnp.asarray(NO_WORDS) if cells is None else cells.words(tiles.kv)
    lists = Lists(jnp.stack([order, steps]), indices, limits, q_places, kv_places, words)
    return Work(lists, tiles, kinds)


def marks_of_keys(
    places: Int[Array, "b K"], counted: Bool[Array, "c k"], placed: bool, tile: int
) -> Shaped[Array, "B kinds K"]:
    """Returns `Lists.kv_places`; that of the last key of a tile says whether all of it count.

    Without places, those of chunks of a tile have a sign that says the same of each.
    """
    counted = counted[:, : places.shape[1]]
    counted = jnp.pad(counted, ((0, 0), (0, places.shape[1] - counted.shape[1])))[:, None]

    def all_of(keys: int) -> Bool[Array, "c 1 K"]:
        return counted.reshape(counted.shape[0], 1, -1, keys).all(3).repeat(keys, 2)

    whole = all_of(tile)
    if not placed:
        beside = jnp.where(all_of(CHUNK), BESIDE, -BESIDE)
        added = jnp.where(counted, jnp.where(whole, 0.0, beside), MASKED)
        return added.astype(jnp.bfloat16)
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
