"""Attention to keys that are in two places: in a cache and after it, or in parts joined later."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.attention.api import (
    SparseImplementation,
    block_sparse_attention,
    positive,
    serving,
)
from pallas_kernels.attention.kernel import attend
from pallas_kernels.attention.past import Past, Prepared
from pallas_kernels.block_mask import BlockMask


def cached_attention(
    q: Float[Array, "B Q N D"],
    k: Float[Array, "B K H D"],
    v: Float[Array, "B K H D"],
    past: Past,
    mask: BlockMask | Prepared,
    *,
    scale: float | None = None,
    return_lse: bool = False,
    implementation: SparseImplementation | None = None,
) -> Any:
    """Computes attention to the keys of a cache and to new ones, among the pairs of `mask`.

    It is `block_sparse_attention` to `past.before(k, v, mask.block_kv)`. `mosaic_gpu` reads the
    cache where it is, if its heads have a size of 64 or 128 and its keys are a multiple of 8.

    Args:
        q: Queries.
        k: Keys after those of the cache.
        v: Values after those of the cache.
        past: The cache.
        mask: The blocks that are attended to, of the keys of both, one after the other; what
            layers share is prepared once for all of them (`prepared`).
        scale: As in `block_sparse_attention`.
        return_lse: The same.
        implementation: The same.

    Returns:
        What `block_sparse_attention` returns.

    Raises:
        ValueError: If the mask is made for other sizes.
        KernelUnavailable: If the asked implementation cannot serve the call.
    """
    made = mask if isinstance(mask, Prepared) else Prepared(mask)
    keys, values = past.before(k, v, made.mask.block_kv)
    kernel = _reader(q, keys, past, made.mask, implementation)
    if kernel is None:
        rules: Any = {"scale": scale, "return_lse": return_lse, "implementation": implementation}
        return block_sparse_attention(q, keys, values, made.mask, **rules)
    attended: Any = attend
    factor = positive(q, scale, "mosaic_gpu")
    both = attended(kernel, q, k, v, made.mask, factor, (past, made.work))
    return both if return_lse else both[0]


def prepared(q: Any, past: Past, mask: BlockMask) -> Prepared:
    """Makes what `cached_attention` reads of a mask, for all layers that share it.

    Args:
        q: Queries `[B, Q, N, D]` of a layer, or their shape and dtype.
        past: The cache, of whatever layer.
        mask: The blocks that are attended to.
    """
    keys = jax.ShapeDtypeStruct((q.shape[0], mask.kv_len, *past.k.shape[3:]), past.k.dtype)
    kernel = _reader(q, keys, past, mask, None)
    return Prepared(mask, None if kernel is None else kernel.work_of(mask, q))


def _reader(
    q: Any, k: Any, past: Past, mask: BlockMask, implementation: SparseImplementation | None
) -> Any:
    """Returns the kernel that serves a call and reads its cache where it is, if there is one."""
    kernel: Any = serving(q, k, mask, implementation)
    return kernel if hasattr(kernel, "reads") and kernel.reads(past, mask) else None


def merge(
    out: Float[Array, "B Q N D"],
    lse: Float[Array, "B N Q"],
    other: Float[Array, "B Q N D"],
    other_lse: Float[Array, "B N Q"],
) -> tuple[Float[Array, "B Q N D"], Float[Array, "B N Q"]]:
    """Joins attention to some keys with attention to others: as if to all of them at once.

    Args:
        out: Values attended to among the first keys.
        lse: Log-sum-exp of their scores; -inf where there was none.
        other: Values attended to among the other keys.
        other_lse: Log-sum-exp of their scores.

    Returns:
        The values, in the dtype of `out`, and the log-sum-exp.
    """
    peak = jax.lax.stop_gradient(jnp.maximum(lse, other_lse))
    peak = jnp.where(peak > -jnp.inf, peak, 0.0)
    one, two = jnp.exp(lse - peak), jnp.exp(other_lse - peak)
    some = one + two > 0
    total = jnp.where(some, one + two, 1.0)
    one, two = (jnp.swapaxes(x / total, 1, 2)[..., None] for x in (one, two))
    joined = (one * out + two * other).astype(out.dtype)
    return joined, jnp.where(some, peak + jnp.log(total), -jnp.inf)
