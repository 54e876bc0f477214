"""Block-sparse attention in plain XLA: memory and time grow with the listed blocks."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.block_mask import BlockMask


class _Row(NamedTuple):
    """One block of queries and its list; `None` as in `BlockMask`."""

    q: Float[Array, "B N q D"]
    indices: Int[Array, "b n M"]
    counts: Int[Array, "b n"]
    full_counts: Int[Array, "b n"] | None
    length: Int[Array, " b"] | None
    coords: Int[Array, "b q"] | None


def gather_attention(
    q: Float[Array, "B Q N D"],
    k: Float[Array, "B K N D"],
    v: Float[Array, "B K N D"],
    mask: BlockMask,
    scale: float,
) -> Float[Array, "B Q N D"]:
    """Computes one block of queries after the other against the key blocks of its list.

    The backward pass gathers keys and values again, instead of keeping a copy per row.
    """
    keys, values = _blocks(k, mask.block_kv), _blocks(v, mask.block_kv)
    by_row: list[Any] = [
        part if part is None else jnp.moveaxis(part, axis, 0)
        for part, axis in (
            (_blocks(q, mask.block_q), 2),
            (mask.kv_indices, 2),
            (mask.kv_counts, 2),
            (mask.kv_full_counts, 2),
            (mask.q_lengths, 1),
            (_cut(mask.q_coords, mask.block_q), 1),
        )
    ]

    @jax.checkpoint
    def attend(row: _Row) -> Array:
        allowed = _allowed(mask, row)
        chosen = jnp.broadcast_to(row.indices, (*row.q.shape[:2], row.indices.shape[2]))
        chosen = chosen[..., None, None]
        near, said = (jnp.take_along_axis(part, chosen, 2) for part in (keys, values))
        scores = jnp.einsum("bnqd,bnmkd->bnqmk", row.q, near, preferred_element_type=jnp.float32)
        scores = jnp.where(allowed, scores * scale, jnp.finfo(jnp.float32).min)
        peak = jax.lax.stop_gradient(jnp.max(scores, (3, 4), keepdims=True))
        weights = jnp.where(allowed, jnp.exp(scores - peak), 0.0)
        total = jnp.sum(weights, (3, 4), keepdims=True)
        weights = weights / jnp.where(total > 0, total, 1.0)
        return jnp.einsum("bnqmk,bnmkd->bqnd", weights.astype(v.dtype), said)

    rows = jax.lax.map(attend, _Row(*by_row))
    out = jnp.moveaxis(rows, 0, 1).reshape(q.shape[0], -1, *q.shape[2:])
    return out[:, : q.shape[1]]


def _allowed(mask: BlockMask, row: _Row) -> Bool[Array, "b n q M k"]:
    """Says which queries of a row attend to which keys of its list."""
    entry = jnp.arange(row.indices.shape[2])[None, None]
    key = jnp.arange(mask.block_kv)
    place = row.indices[..., None] * mask.block_kv + key[None, None, None]
    known = (entry < row.counts[..., None])[..., None] & (place < mask.kv_len)
    if mask.kv_lengths is not None:
        known &= key[None, None, None] < _listed(mask.kv_lengths, row.indices)[..., None]
    allowed = jnp.broadcast_to(
        known[:, :, None], (*known.shape[:2], mask.block_q, *known.shape[2:])
    )
    keys = _cut(mask.kv_coords, mask.block_kv)
    if row.full_counts is not None and row.coords is not None and keys is not None:
        coords = _listed(keys, row.indices)
        pairs = mask.allows(row.coords[:, None, :, None, None], coords[:, :, None])
        full = entry < row.full_counts[..., None]
        allowed &= pairs | full[:, :, None, :, None]
    if row.length is not None:
        known = jnp.arange(mask.block_q)[None] < row.length[:, None]
        allowed &= known[:, None, :, None, None]
    return allowed


def _listed(values: Array, indices: Int[Array, "b n M"]) -> Array:
    """Takes the entries of listed blocks from an array `[b, K, ...]`."""
    shape = jnp.broadcast_shapes(values.shape[:1], indices.shape[:1]) + indices.shape[1:]
    values = jnp.broadcast_to(values[:, None], (*shape[:2], *values.shape[1:]))
    chosen = jnp.broadcast_to(indices, shape).reshape(*shape, *(1,) * (values.ndim - 3))
    return jnp.take_along_axis(values, chosen, 2)


def _blocks(x: Float[Array, "B L N D"], size: int) -> Float[Array, "B N Q size D"]:
    """Cuts a sequence into blocks; the last is padded with zeros."""
    return jnp.moveaxis(_cut(x, size), 3, 1)


def _cut(x: Any, size: int) -> Any:
    if x is None:
        return None
    short = -x.shape[1] % size
    x = jnp.pad(x, [(0, 0), (0, short), *[(0, 0)] * (x.ndim - 2)])
    return x.reshape(x.shape[0], -1, size, *x.shape[2:])
