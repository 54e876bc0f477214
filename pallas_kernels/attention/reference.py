"""Attention under a mask of all pairs: the definition that other implementations are held to."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pallas_kernels.block_mask import BlockMask


def masked_attention(
    q: Float[Array, "B Q N D"],
    k: Float[Array, "B K H D"],
    v: Float[Array, "B K H D"],
    mask: BlockMask,
    scale: float,
    skipped: Bool[Array, "B N r c"] | None = None,
) -> tuple[Float[Array, "B Q N D"], Float[Array, "B N Q"]]:
    """Returns attended values and the log-sum-exp of the scores, quadratic in the lengths.

    Of listed blocks those that are `skipped` do not count.
    """
    allowed = mask.token_mask()
    if skipped is not None:
        spread = skipped.repeat(mask.block_q, 2).repeat(mask.block_kv, 3)
        allowed &= ~spread[:, :, : q.shape[1], : k.shape[1]]
    out = jax.nn.dot_product_attention(
        q, k, v, mask=allowed, scale=scale, implementation="xla"
    )  # whose log-sum-exp has no gradient
    some = jnp.any(allowed, 3)
    out = jnp.where(some.swapaxes(1, 2)[..., None], out, 0)
    keys, kind = per_head(k, q.shape[2]), exact(q.dtype)
    scores = jnp.einsum("bqnd,bknd->bnqk", q, keys, preferred_element_type=kind) * scale
    lse = jax.nn.logsumexp(scores, 3, where=allowed | ~some[..., None])
    return out, jnp.where(some, lse, -jnp.inf)


def exact(dtype: jnp.dtype) -> jnp.dtype:
    """Returns the dtype of scores and of their softmax: float32 or wider."""
    return jnp.promote_types(dtype, jnp.float32)


def per_head(x: Float[Array, "B K H D"], heads: int) -> Float[Array, "B K N D"]:
    """Gives every head of the queries its keys or values; `H` divides `heads`."""
    return x if x.shape[2] == heads else jnp.repeat(x, heads // x.shape[2], 2)
