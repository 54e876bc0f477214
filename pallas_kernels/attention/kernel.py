"""What a hand-written attention kernel provides, and the gradients that all of them share."""

import functools
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from pallas_kernels.attention.past import Past
from pallas_kernels.attention.reference import exact
from pallas_kernels.block_mask import BlockMask


class KernelUnavailable(NotImplementedError):
    """An implementation that was asked for cannot serve the call; the message says why."""


@runtime_checkable
class Kernel(Protocol):
    """Forward and backward pass on one kind of device; frozen, for it is part of the program."""

    def refusal(
        self,
        q: Float[Array, "B Q N D"],
        k: Float[Array, "B K H D"],
        mask: BlockMask,
    ) -> str:
        """Returns why the kernel cannot serve such a call here; empty if it can."""
        ...

    def about(self, mask: BlockMask) -> str:
        """Says what a user should know of the choices of the kernel here; mostly empty."""
        ...

    def repeating(self) -> "Kernel":
        """Returns the kernel whose gradients are the same bits in every call.

        Raises:
            KernelUnavailable: If there is none.
        """
        ...

    def forward(
        self,
        q: Float[Array, "B Q N D"],
        k: Float[Array, "B K H D"],
        v: Float[Array, "B K H D"],
        mask: BlockMask,
        scale: float,
    ) -> tuple[Float[Array, "B Q N D"], Float[Array, "B N Q"]]:
        """Returns attended values and the log-sum-exp of the scores."""
        ...

    def backward(
        self,
        q: Float[Array, "B Q N D"],
        k: Float[Array, "B K H D"],
        v: Float[Array, "B K H D"],
        mask: BlockMask,
        scale: float,
        lse: Float[Array, "B N L"],
        d_out: Float[Array, "B Q N D"],
        delta: Float[Array, "B N L"],
    ) -> tuple[Float[Array, "B Q N D"], Float[Array, "B K H D"], Float[Array, "B K H D"]]:
        """Returns the gradients of queries, keys and values.

        The gradient of a score is `p * (d_out . v - delta)`, where `p = exp(score - lse)`. Both
        reach up to the end of the last block; `lse` is inf for a query that attends to nothing.
        Gradients of keys that do not count may be anything.
        """
        ...


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 5))
def attend(
    kernel: Kernel,
    q: Float[Array, "B Q N D"],
    k: Float[Array, "B K H D"],
    v: Float[Array, "B K H D"],
    mask: BlockMask,
    scale: float,
    cached: tuple[Past, Any] | None = None,
) -> tuple[Float[Array, "B Q N D"], Float[Array, "B N Q"]]:
    """Returns attended values and the log-sum-exp of the scores, both differentiable.

    What the backward pass keeps is named `attention_out` and `attention_lse`, for policies of
    rematerialisation. A cache, and what was prepared of the mask, are for a kernel that reads them.
    """
    return _attended(kernel, q, k, v, mask, scale, cached)


def _attended(kernel: Any, *given: Any) -> tuple[Array, Array]:
    *inputs, cached = given
    return kernel.forward(*inputs, *(cached or ()))


def _forward(
    kernel: Kernel, q: Array, k: Array, v: Array, mask: BlockMask, scale: float, cached: Any
) -> Any:
    out, lse = _attended(kernel, q, k, v, mask, scale, cached)
    out, lse = checkpoint_name(out, "attention_out"), checkpoint_name(lse, "attention_lse")
    return (out, lse), (q, k, v, mask, cached, out, lse)


def _backward(kernel: Kernel, scale: float, kept: Any, cotangents: Any) -> Any:
    q, k, v, mask, cached, out, lse = kept
    if cached is not None:
        k, v = cached[0].before(k, v, mask.block_kv)
    if mask.skip_log2 is not None:
        what = "a kernel has no gradients where blocks are skipped by their scores (skip_log2)"
        raise KernelUnavailable(f"{what}; use implementation='xla', or masks without")
    d_out, d_lse = cotangents
    kind = exact(q.dtype)
    delta = jnp.einsum("bqnd,bqnd->bnq", out.astype(kind), d_out.astype(kind))
    some = lse > -jnp.inf
    short = ((0, 0), (0, 0), (0, -q.shape[1] % mask.block_q))
    delta = jnp.pad(jnp.where(some, delta - d_lse, 0.0), short)
    lse = whole_blocks(lse, mask.block_q)
    d_q, d_k, d_v = kernel.backward(q, k, v, mask, scale, lse, d_out, delta)
    if mask.kv_lengths is not None:
        known = mask.kv_counted[:, : k.shape[1], None, None]
        d_k, d_v = jnp.where(known, d_k, 0), jnp.where(known, d_v, 0)
    d_cached = None
    if cached is not None:
        d_past, d_k, d_v = cached[0].gradient(d_k, d_v, mask.block_kv)
        d_cached = d_past, None
    return d_q, d_k, d_v, None, d_cached


attend.defvjp(_forward, _backward)


def whole_blocks(lse: Float[Array, "B N Q"], size: int) -> Float[Array, "B N L"]:
    """Returns a log-sum-exp up to the end of the last block: inf for queries without weights."""
    short = ((0, 0), (0, 0), (0, -lse.shape[2] % size))
    return jnp.pad(jnp.where(lse > -jnp.inf, lse, jnp.inf), short, constant_values=jnp.inf)
