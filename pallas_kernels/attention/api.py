"""Attention: one call, several implementations, chosen by what can serve it."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.attention.xla import gather_attention
from pallas_kernels.block_mask import BlockMask

Implementation = Literal["xla", "cudnn"]


def dense_attention(
    q: Float[Array, "B Q N D"],
    k: Float[Array, "B K N D"],
    v: Float[Array, "B K N D"],
    *,
    mask: Bool[Array, "#B #N Q K"] | None = None,
    kv_lengths: Int[Array, " B"] | None = None,
    scale: float | None = None,
    implementation: Implementation | None = None,
) -> Float[Array, "B Q N D"]:
    """Computes `softmax(scale q k^T) v` for every head.

    Args:
        q: Queries.
        k: Keys; `K` may differ from `Q`.
        v: Values.
        mask: True where a query may attend to a key.
        kv_lengths: Number of keys, from the first, that each batch row attends
            to; the rest is padding. At least 1.
        scale: Factor of the products; `1 / sqrt(D)` if None.
        implementation: `xla` runs anywhere; `cudnn` needs an NVIDIA GPU and
            16-bit inputs. None chooses `cudnn` where `refusal` finds no
            reason against it.

    Returns:
        Attended values in the dtype of `q`; softmax is taken in float32.

    Raises:
        NotImplementedError: If the asked implementation cannot serve the call.
    """
    reason = refusal(q)
    if implementation == "cudnn" and reason:
        raise NotImplementedError(f"cudnn: {reason}; use implementation='xla'")
    chosen = implementation or ("xla" if reason else "cudnn")
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, scale=scale, key_value_seq_lengths=kv_lengths, implementation=chosen
    )


def block_sparse_attention(
    q: Float[Array, "B Q N D"],
    k: Float[Array, "B K N D"],
    v: Float[Array, "B K N D"],
    mask: BlockMask | None,
    *,
    scale: float | None = None,
    implementation: Literal["reference", "xla"] | None = None,
) -> Float[Array, "B Q N D"]:
    """Computes attention among the pairs that `mask` allows; it has no gradient.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        mask: The blocks that are attended to; None is `dense_attention`.
        scale: Factor of the products; `1 / sqrt(D)` if None.
        implementation: `reference` is dense attention under the mask of all pairs, `xla`
            grows with the width of the lists. None chooses `xla` where the lists hold at
            most half of the key blocks.

    Returns:
        Attended values in the dtype of `q`, zeros for a query that attends to nothing.

    Raises:
        ValueError: If the mask is made for other sizes.
    """
    if mask is None:
        return dense_attention(q, k, v, scale=scale)
    _check(q, k, mask)
    if implementation is None:
        implementation = "xla" if 2 * mask.kv_indices.shape[3] <= mask.grid[1] else "reference"
    if implementation == "xla":
        return gather_attention(q, k, v, mask, q.shape[3] ** -0.5 if scale is None else scale)
    allowed = mask.token_mask()
    out = dense_attention(q, k, v, mask=allowed, scale=scale)
    some = jnp.any(allowed, 3).swapaxes(1, 2)[..., None]
    return jnp.where(some, out, 0)


def _check(q: Array, k: Array, mask: BlockMask) -> None:
    """Raises `ValueError` if a mask is not for these queries and keys."""
    if (mask.q_len, mask.kv_len) != (q.shape[1], k.shape[1]):
        raise ValueError(
            f"the mask is for {mask.q_len} queries and {mask.kv_len} keys, "
            f"but there are {q.shape[1]} and {k.shape[1]}"
        )
    batch, heads = mask.kv_counts.shape[:2]
    if batch not in (1, q.shape[0]) or heads not in (1, q.shape[2]):
        raise ValueError(
            f"the mask is for {batch} batch rows and {heads} heads, but there are "
            f"{q.shape[0]} and {q.shape[2]}; 1 serves all"
        )


def refusal(q: Float[Array, "B Q N D"]) -> str:
    """Returns why cuDNN cannot serve queries like `q` here; empty if it can."""
    if jax.default_backend() != "gpu":
        return f"the default device is {jax.default_backend()}, not an NVIDIA GPU"
    if q.dtype.itemsize != 2:
        return f"the inputs are {q.dtype}, not 16-bit"
    if q.shape[-1] % 8 or q.shape[-1] > 128:
        return f"the head size {q.shape[-1]} is not a multiple of 8 up to 128"
    return ""
