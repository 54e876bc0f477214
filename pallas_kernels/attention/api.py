"""Attention: one call, several implementations, chosen by what can serve it."""

from typing import Literal

import jax
from jaxtyping import Array, Bool, Float, Int

Implementation = Literal["xla", "cudnn"]


def dense_attention(
    q: Float[Array, "B Q N D"],
    k: Float[Array, "B K N D"],
    v: Float[Array, "B K N D"],
    *,
    mask: Bool[Array, "#B #N Q K"] | None = None,
    kv_lengths: Int[Array, " B"] | None = None,
    implementation: Implementation | None = None,
) -> Float[Array, "B Q N D"]:
    """Computes `softmax(q k^T / sqrt(D)) v` for every head.

    Args:
        q: Queries.
        k: Keys; `K` may differ from `Q`.
        v: Values.
        mask: True where a query may attend to a key.
        kv_lengths: Number of keys, from the first, that each batch row attends
            to; the rest is padding. At least 1.
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
        q, k, v, mask=mask, key_value_seq_lengths=kv_lengths, implementation=chosen
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
