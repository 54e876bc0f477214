"""What the kernels read of a mask: lists in scalar memory, and numbers of tokens that mask pairs.

A *piece* is what is fetched at once: a block of keys, or an equal part of one. A *step* computes
with several pieces. Each entry of a list is `4 * piece + kind`. A pair counts if
`place of the key + shift of the kind <= place of the query`.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from pallas_kernels.attention.pallas_tpu.tiles import Tiles
from pallas_kernels.block_mask import BlockMask

FULL, CUT, PARTIAL, ABSENT = range(4)  # kinds: all keys count; those that exist; by place; none

_NOWHERE = 1 << 29  # place of a key that counts in full blocks only
_UNCOUNTED = 1 << 30  # of one that never does


class Lists(NamedTuple):
    """A mask as the kernels read it; `X` is what its batch rows and heads give, or 1.

    Attributes:
        rows: i32[X, Q, 1, 1 + M], number of steps and entries, for each block of queries.
        q_places: i32[b, tiles, 1, q], a number per query; None where all are 0.
        kv_places: i32[b, pieces, kv], a number per key.
        per_head: Whether heads have lists of their own.
    """

    rows: Int[Array, "X Q 1 M"]
    q_places: Int[Array, "b T 1 q"] | None
    kv_places: Int[Array, "b P k"]
    per_head: bool


def pack(mask: BlockMask, tiles: Tiles, *, cut: bool = True) -> Lists:
    """Makes what the kernels read of a mask.

    Args:
        mask: Its blocks are those of `tiles`.
        tiles: What is computed at a time.
        cut: Whether keys that do not exist must be masked; if not, the caller sees to it.
    """
    entry = jnp.arange(mask.kv_indices.shape[3])[None, None, None]
    kinds = jnp.where(_cut_entries(mask), CUT, FULL) if cut else jnp.zeros_like(mask.kv_indices)
    if mask.by_place and mask.kv_full_counts is not None:
        kinds = jnp.where(entry >= mask.kv_full_counts[..., None], PARTIAL, kinds)
    kinds = jnp.where(entry >= mask.kv_counts[..., None], ABSENT, kinds)
    parts = jnp.arange(tiles.kv_split)[None, None, None, None]
    pieces = mask.kv_indices[..., None] * tiles.kv_split + parts
    entries = (4 * pieces + kinds[..., None]).reshape(*kinds.shape[:3], -1)
    short = [(0, 0), (0, 0), (0, 0), (0, -entries.shape[3] % tiles.pieces)]
    entries = jnp.pad(entries, short, constant_values=ABSENT)
    steps = -(-mask.kv_counts * tiles.kv_split // tiles.pieces)
    rows = jnp.concatenate([jnp.broadcast_to(steps, kinds.shape[:3])[..., None], entries], 3)
    q_places, kv_places = _places(mask, cut)
    return Lists(
        rows=rows.reshape(-1, mask.grid[0], 1, rows.shape[3]).astype(jnp.int32),
        q_places=None if q_places is None else q_places.reshape(len(q_places), -1, 1, tiles.q),
        kv_places=kv_places.reshape(len(kv_places), -1, tiles.kv),
        per_head=mask.kv_counts.shape[1] > 1,
    )


def shift(kind: Any) -> Any:
    """Returns what is added to the places of keys in a piece of a kind."""
    return jnp.where(kind == ABSENT, _NOWHERE, jnp.where(kind == PARTIAL, 0, -_NOWHERE - 1))


def _cut_entries(mask: BlockMask) -> Bool[Array, "B N Q M"]:
    """Says which entries of the lists are blocks of which some keys do not count."""
    if mask.kv_lengths is None:
        short = mask.kv_len % mask.block_kv > 0
        return (mask.kv_indices == mask.grid[1] - 1) & short
    whole = mask.kv_counted
    whole = jnp.all(whole.reshape(len(whole), -1, mask.block_kv), 2)
    size = max(len(whole), len(mask.kv_indices))
    ids = jnp.broadcast_to(mask.kv_indices, (size, *mask.kv_indices.shape[1:]))
    whole = jnp.broadcast_to(whole[:, None, None], (size, 1, 1, whole.shape[1]))
    return ~jnp.take_along_axis(whole, ids, 3)


def _places(mask: BlockMask, cut: bool) -> tuple[Array | None, Array]:
    """Returns a number per query, unless all are 0, and per key, up to the end of the blocks."""
    known = mask.kv_counted if cut else jnp.ones((1, mask.grid[1] * mask.block_kv), bool)
    if not mask.by_place:
        return None, jnp.where(known, 0, _UNCOUNTED)
    q_places, kv_places = mask.places(_NOWHERE)
    return q_places, jnp.where(known, kv_places, _UNCOUNTED)
