"""Skip-softmax: blocks of a list are left out whose scores are far below those before them.

Reference: BLASST, Yuan et al., arXiv:2512.12087.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pallas_kernels.attention.reference import exact, per_head
from pallas_kernels.block_mask import BlockMask

LOG2E = math.log2(math.e)


def left_out(
    peaks: Float[Array, "*rows q M"], limits: Float[Array, "*rows"]
) -> Bool[Array, "*rows M"]:
    """Says which entries of lists are left out, in the order of the lists.

    An entry is left out where the best score of every query in it is below the best score of that
    query before it by more than the limit. So the first entry of a list never is, and a query
    whose weights are left out loses at most `2 ** limit` of its greatest weight for each key.

    Args:
        peaks: Best score of each query of a block in each entry, scaled; -inf where it attends to
            nothing in it.
        limits: At most 0, in powers of two; -inf leaves out nothing.
    """
    before = jax.lax.cummax(peaks, axis=peaks.ndim - 1)
    first = jnp.full_like(peaks[..., :1], -jnp.inf)
    before = jnp.concatenate([first, before[..., :-1]], -1)
    some, seen = peaks > -jnp.inf, before > -jnp.inf
    fall = jnp.where(some & seen, peaks - before, 0.0) * LOG2E
    needed = some & (~seen | (fall >= limits[..., None, None]))
    return (limits > -jnp.inf)[..., None] & ~jnp.any(needed, -2)


def best_scores(
    q: Float[Array, "B Q N D"], k: Float[Array, "B K H D"], mask: BlockMask, scale: float
) -> Float[Array, "B N r q M"]:
    """Returns the best score of each query in each entry of its list, -inf where there is none.

    Quadratic in the lengths.
    """
    allowed, keys = mask.token_mask(), per_head(k, q.shape[2])
    scores = jnp.einsum("bqnd,bknd->bnqk", q, keys, preferred_element_type=exact(q.dtype)) * scale
    scores = jnp.where(allowed, scores, -jnp.inf)
    (rows, columns), (high, wide) = mask.grid, (mask.block_q, mask.block_kv)
    short = ((0, 0), (0, 0), (0, rows * high - q.shape[1]), (0, columns * wide - k.shape[1]))
    scores = jnp.pad(scores, short, constant_values=-jnp.inf)
    peaks = scores.reshape(*scores.shape[:2], rows, high, columns, wide).max(-1)
    ids = jnp.broadcast_to(mask.kv_indices, (*peaks.shape[:3], mask.kv_indices.shape[3]))
    peaks = jnp.take_along_axis(peaks, ids[..., None, :], -1)
    counts = jnp.arange(ids.shape[3])[None, None, None] < mask.kv_counts[..., None]
    return jnp.where(counts[..., None, :], peaks, -jnp.inf)


def skipped_blocks(
    q: Float[Array, "B Q N D"],
    k: Float[Array, "B K H D"],
    mask: BlockMask,
    scale: float | None = None,
) -> Bool[Array, "B N r c"]:
    """Returns the map of listed blocks that the limits of a mask leave out.

    Args:
        q: Queries.
        k: Keys.
        mask: With `skip_log2`; without it no block is left out.
        scale: Factor of the products; `1 / sqrt(D)` if None.
    """
    factor = q.shape[3] ** -0.5 if scale is None else scale
    shape = (q.shape[0], q.shape[2], *mask.grid)
    if mask.skip_log2 is None:
        return jnp.zeros(shape, bool)
    peaks = best_scores(*jax.lax.stop_gradient((q, k)), mask, factor)
    out = left_out(peaks, jnp.broadcast_to(mask.skip_log2, shape[:3]))
    return mask.marked(out)
