"""Attention of the tokens of a video to a prompt: many queries, with their norm, and few keys."""

import functools
from typing import Any

import jax
from jaxtyping import Array, Float, Int

from pallas_kernels.norms import Implementation, by_xla, is_power, refusal_of_device, rms_normal

QUERIES = 64
"""Queries of a tile."""


def short_attention(
    q: Float[Array, "B Q N D"],
    gain: Float[Array, " D"],
    k: Float[Array, "B K N D"],
    v: Float[Array, "B K N D"],
    lengths: Int[Array, " B"],
    implementation: Implementation = None,
) -> Float[Array, "B Q N D"]:
    """Returns `softmax((q / rms(q) gain) k / sqrt(D)) v` among the first `lengths` keys.

    Args:
        q: Queries, before their norm.
        gain: What normalised queries of every head are multiplied with.
        k: Keys: for the kernel 16, 32, 64 or 128.
        v: Values.
        lengths: How many keys of each video count, one at least.
        implementation: Which program (`pallas_kernels.norms.Implementation`).

    Raises:
        KernelUnavailable: If the asked implementation cannot serve the call.
    """
    interpret = implementation == "interpret"
    if by_xla(implementation, _refusal(q, k, interpret)):
        normal = (rms_normal(q) * gain[(None,) * 3]).astype(q.dtype)
        return jax.nn.dot_product_attention(normal, k, v, key_value_seq_lengths=lengths)
    made: Any = _short_attention(q, gain, k, v, lengths, interpret)
    return made


def serves_short_attention(q: Float[Array, "B Q N D"], k: Float[Array, "B K N D"]) -> bool:
    """Returns whether `short_attention` has a kernel for such queries and keys here."""
    return not _refusal(q, k, False)


def _refusal(q: Array, k: Array, interpret: bool) -> str:
    if not is_power(k.shape[1]) or not 16 <= k.shape[1] <= 128:
        return f"{k.shape[1]} keys are not 16, 32, 64 or 128"
    if q.shape[3] not in (64, 128) or q.shape[1] % QUERIES:
        return f"{q.shape[1]} queries are no multiple of {QUERIES}, or {q.shape[3]} not 64 or 128"
    return "" if interpret else refusal_of_device(q, q.shape[0] * q.shape[2])


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _short_attention(
    q: Array, gain: Array, k: Array, v: Array, lengths: Array, interpret: bool
) -> Array:
    from pallas_kernels.prompts_triton import forward

    return forward(q, gain, k, v, lengths, interpret)


def _kept(q: Array, gain: Array, k: Array, v: Array, lengths: Array, interpret: bool) -> Any:
    given = (q, gain, k, v, lengths)
    return _short_attention(*given, interpret), given


def _gradients(interpret: bool, given: Any, d_out: Array) -> Any:
    from pallas_kernels.prompts_triton import backward

    q, gain, k, v, lengths = given
    return *backward(q, gain, k, v, lengths, d_out, interpret), None


_short_attention.defvjp(_kept, _gradients)
