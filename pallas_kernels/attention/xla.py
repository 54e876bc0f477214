"""Block-sparse attention in plain XLA: memory and time grow with the listed blocks."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.attention.reference import exact, per_head
from pallas_kernels.attention.skipping import left_out
from pallas_kernels.block_mask import BlockMask


class _Row(NamedTuple):
    """One block of queries and its list; `None` as in `BlockMask`."""

    q: Float[Array, "B N q D"]
    indices: Int[Array, "b n M"]
    counts: Int[Array, "b n"]
    full_counts: Int[Array, "b n"] | None
    length: Int[Array, " b"] | None
    coords: Int[Array, "b q"] | None
    limits: Float[Array, "b n"] | None
    counted: Bool[Array, "b q"]


def gather_attention(
    q: Float[Array, "B Q N D"],
    k: Float[Array, "B K H D"],
    v: Float[Array, "B K H D"],
    mask: BlockMask,
    scale: float,
) -> tuple[Float[Array, "B Q N D"], Float[Array, "B N Q"]]:
    """Computes one block of queries after the other against the key blocks of its list.

    The backward pass gathers keys and values again, instead of keeping a copy per row. What
    `skip_log2` leaves out is computed all the same.

    Returns:
        Attended values and the log-sum-exp of the scores.
    """
    keys, values = (_blocks(per_head(x, q.shape[2]), mask.block_kv) for x in (k, v))
    by_row: list[Any] = [
        part if part is None else jnp.moveaxis(part, axis, 0)
        for part, axis in (
            (_blocks(q, mask.block_q), 2),
            (mask.kv_indices, 2),
            (mask.kv_counts, 2),
            (mask.kv_full_counts, 2),
            (mask.q_lengths, 1),
            (_cut(mask.q_coords, mask.block_q), 1),
            (mask.skip_log2, 2),
            (_cut(mask.q_counted, mask.block_q), 1),
        )
    ]

    @jax.checkpoint
    def attend(row: _Row) -> tuple[Array, Array]:
        chosen = jnp.broadcast_to(row.indices, (*row.q.shape[:2], row.indices.shape[2]))
        chosen = chosen[..., None, None]
        near, said = (jnp.take_along_axis(part, chosen, 2) for part in (keys, values))
        kind = exact(q.dtype)
        scores = jnp.einsum("bnqd,bnmkd->bnqmk", row.q, near, preferred_element_type=kind)
        scores, allowed = scores * scale, _allowed(mask, row)
        if row.limits is not None:
            some = allowed & row.counted[:, None, :, None, None]
            peaks = jnp.max(jax.lax.stop_gradient(scores), 4, initial=-jnp.inf, where=some)
            limits = jnp.broadcast_to(row.limits, peaks.shape[:2])
            allowed &= ~left_out(peaks, limits)[:, :, None, :, None]
        weights, lse = _softmax(scores, allowed, (3, 4))
        return jnp.einsum("bnqmk,bnmkd->bqnd", weights.astype(v.dtype), said), lse

    rows, lse = jax.lax.map(attend, _Row(*by_row))
    out = jnp.moveaxis(rows, 0, 1).reshape(q.shape[0], -1, *q.shape[2:])
    lse = jnp.moveaxis(lse, 0, 2).reshape(q.shape[0], q.shape[2], -1)
    return out[:, : q.shape[1]], lse[..., : q.shape[1]]


def queries_gradient(
    q: Float[Array, "B Q N D"],
    k: Float[Array, "B K H D"],
    v: Float[Array, "B K H D"],
    mask: BlockMask,
    scale: float,
    d_out: Float[Array, "B Q N D"],
    delta: Float[Array, "B N L"],
) -> Float[Array, "B Q N D"]:
    """Returns the gradient of queries, added up in one order: equal bit for bit in every call.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        mask: The blocks that are attended to.
        scale: Factor of the products.
        d_out: Gradient of the attended values.
        delta: As `Kernel.backward` says.
    """
    (out, _), pull = jax.vjp(lambda q: gather_attention(q, k, v, mask, scale), q)
    kind = exact(q.dtype)
    products = jnp.einsum("bqnd,bqnd->bnq", out.astype(kind), d_out.astype(kind))
    d_lse = products - delta[..., : q.shape[1]]
    (d_q,) = pull((d_out, d_lse.astype(kind)))
    return d_q


def _softmax(
    scores: Float[Array, "..."], allowed: Bool[Array, "..."], axes: tuple[int, ...]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Returns weights and the log-sum-exp over `axes`; nothing allowed gives 0 and -inf."""
    scores = jnp.where(allowed, scores, jnp.finfo(scores.dtype).min)
    peak = jax.lax.stop_gradient(jnp.max(scores, axes, keepdims=True))
    weights = jnp.where(allowed, jnp.exp(scores - peak), 0.0)
    total = jnp.sum(weights, axes, keepdims=True)
    some = total > 0
    total = jnp.where(some, total, 1.0)
    lse = jnp.where(some, peak + jnp.log(total), -jnp.inf)
    return weights / total, jnp.squeeze(lse, axes)


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


def looped_mass(
    q: Float[Array, "B Q N D"],
    k: Float[Array, "B K H D"],
    lse: Float[Array, "B N Q"],
    block_q: int,
    block_kv: int,
    scale: float,
    kv_lengths: Int[Array, "#B k"] | None,
) -> Float[Array, "B N q k"]:
    """Returns the sums of the weights of blocks, one row of blocks after the other."""
    keys = jnp.moveaxis(per_head(k, q.shape[2]), 1, 2)
    place = jnp.arange(keys.shape[2])
    edges, known = place // block_kv, jnp.ones((1, 1), bool)
    if kv_lengths is not None:
        known = (place % block_kv)[None] < kv_lengths[:, edges]

    def mass(row: tuple[Array, Array]) -> Array:
        scores = jnp.einsum("bnqd,bnkd->bnqk", row[0], keys, preferred_element_type=exact(q.dtype))
        level = row[1][..., None]
        counts = (level > -jnp.inf) & known[:, None, None]
        weights = jnp.exp(jnp.where(counts, scores * scale - level, -jnp.inf))
        total = jnp.moveaxis(jnp.sum(weights, 2), 2, 0)
        return jax.ops.segment_sum(total, edges, -(-keys.shape[2] // block_kv))

    short = -q.shape[1] % block_q
    levels = jnp.pad(lse, ((0, 0), (0, 0), (0, short)), constant_values=-jnp.inf)
    levels = jnp.moveaxis(levels.reshape(*lse.shape[:2], -1, block_q), 2, 0)
    rows = jax.lax.map(mass, (jnp.moveaxis(_blocks(q, block_q), 2, 0), levels))
    return jnp.moveaxis(rows, (0, 1), (2, 3))


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
