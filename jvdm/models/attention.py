"""Attention layers of the networks: a policy decides who attends to whom."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Float, Int, PyTree, Tokens
from jvdm.attention import AttentionCall, Blocks, Dense, Policy, TokenGrid
from jvdm.attention.policy import Turn
from jvdm.models.conditions import TextStates
from jvdm.models.layers import Linear, RMSNorm, Rotary, rotary_table, rotate
from jvdm.parallel import attention, read
from pallas_kernels import (
    BlockMask,
    Past,
    Prepared,
    head_norm,
    serves_head_norm,
    serves_short_attention,
    short_attention,
)


class Positions:
    """Base of rules how the heads of a network turn with the place of a token."""

    def table(self, frames: Float[Array, " F"], grid: TokenGrid) -> Rotary:
        """Returns the table of whole frames at these places in time, in raster order."""
        raise NotImplementedError

    def turning(self, window: Rotary, grid: TokenGrid, dtype: str) -> Turn:
        """Returns what gives keys their positions; `window` is the table of a call's tokens."""

        def turn(k: Array, frames: Array | None = None) -> Array:
            table = window if frames is None else self.table(frames, grid)
            return rotate(k, table).astype(dtype)

        return turn


@dataclasses.dataclass(frozen=True)
class RotaryAxes(Positions):
    """Features of a head turn with time, row or column (`rotary_table`)."""

    axes: tuple[int, int, int]
    base: float

    def table(self, frames: Float[Array, " F"], grid: TokenGrid) -> Rotary:
        """Returns the table of whole frames at these places in time, in raster order."""
        return rotary_table(frames, grid.height, grid.width, self.axes, self.base)


def attend(
    policy: Policy,
    q: Float[Array, "B L N D"],
    k: Float[Array, "B L N D"],
    v: Float[Array, "B L N D"],
    state: PyTree,
    call: AttentionCall,
) -> tuple[Float[Array, "B L N D"], PyTree]:
    """Returns attended values and the policy's next state.

    Args:
        policy: Who attends to whom.
        q: Queries, with their positions.
        k: Keys, without.
        v: Values.
        state: The policy's state of this layer.
        call: What it is told of the layer; padding of its order is never attended to.
    """

    def among(
        q: Array,
        k: Array,
        v: Array,
        mask: BlockMask | Prepared | None,
        return_lse: bool = False,
        past: Past | None = None,
    ) -> Any:
        if mask is None and call.order is not None and call.order.is_padded:
            mask = Blocks(call.grid, call.order).everything()
        made = attention(q, k, v, mask, return_lse, past)
        if return_lse:  # a policy may keep it: XLA would run a kernel again for what a loop keeps
            return made[0], jax.lax.optimization_barrier(made[1])
        return made

    return policy.attend(q, k, v, state, call, among)


def gated(layer: Any, call: AttentionCall, x: Tokens, heads: tuple[int, ...]) -> AttentionCall:
    """Returns the call with what the port `gate` of a layer says of its inputs, if it has one.

    A network is made with the port if its policy is `gated`; weights without it say zeros.
    """
    has = layer.is_initializing() or layer.has_variable("params", "gate")
    if not layer.policy.gated or not has:
        return call
    (told,) = Linear((x.shape[-1],), layer.dtype, scale=0.0, name="gate")(x)
    return call._replace(gate=told.reshape(heads))


def read_prompt(
    q: Float[Array, "B Q N D"],
    k: Float[Array, "B K N D"],
    v: Float[Array, "B K N D"],
    lengths: Int[Array, "B ..."] | None,
    text: TextStates,
) -> Float[Array, "B Q N D"]:
    """Returns what video tokens read of the prompt, those of each frame of its own section's.

    Every section is read by all tokens, so that no token's keys are copied and meshes split them
    as ever; a frame keeps what it read of its own, with the bits of a clip of that prompt alone.

    Args:
        q: Queries, frame after frame.
        k: Keys of the states, of all sections side by side.
        v: Values.
        lengths: How many states of each prompt count; None is all.
        text: Says what frames read, those of this call (`TextStates.seen`).
    """
    if text.section is None:
        return read(q, k, v, lengths)
    mine = jnp.repeat(text.section, q.shape[1] // text.section.shape[1], 1)[..., None, None]
    size, out = k.shape[1] // text.sections, jnp.zeros_like(q)
    for number in range(text.sections):
        own = slice(number * size, (number + 1) * size)
        told = read(q, k[:, own], v[:, own], None if lengths is None else lengths[:, number])
        out = jnp.where(mine == number, told, out)
    return out


class SelfAttention(nn.Module):
    """Attention among video tokens, with per-head norms and rotary positions."""

    head_dim: int
    policy: Policy
    dtype: str = "bfloat16"
    heads: int | None = None
    """How many; None is as many as make up the width."""

    @nn.compact
    def __call__(
        self,
        x: Tokens,
        rotary: Rotary,
        state: PyTree,
        call: AttentionCall,
        keep: Float[Array, "B L N"] | None = None,
    ) -> tuple[Tokens, PyTree]:
        """Returns attended features and the policy's next state; `keep` multiplies heads."""
        width = x.shape[-1] if self.heads is None else self.heads * self.head_dim
        q, k, v = (
            _heads(part, self.head_dim) for part in Linear((width,) * 3, self.dtype, name="qkv")(x)
        )
        q = _normalized(RMSNorm(name="q_norm"), q, rotary)
        turned = type(self.policy) is Dense and serves_head_norm(k, rotary.tokens())
        k = _normalized(RMSNorm(name="k_norm"), k, rotary if turned else None)
        if turned:
            call = call._replace(turn=lambda k: k)
        call = gated(self, call, x, q.shape)
        out, state = attend(self.policy, q, k, v, state, call)
        if keep is not None:
            out = out * keep[..., None].astype(out.dtype)
        out = out.reshape(*x.shape[:2], width)
        (y,) = Linear((x.shape[-1],), self.dtype, scale=0.3, name="out")(out)
        return y, state


class CrossAttention(nn.Module):
    """Video tokens read the states of the prompt."""

    head_dim: int
    dtype: str = "bfloat16"

    @nn.compact
    def __call__(self, x: Tokens, text: TextStates) -> Tokens:
        """Returns what was read; padding of the prompt is never attended to."""
        width = x.shape[-1]
        (q,) = Linear((width,), self.dtype, name="q")(x)
        k, v = Linear((width, width), self.dtype, name="kv")(text.states)
        q, k, v = (_heads(part, self.head_dim) for part in (q, k, v))
        norm, k = RMSNorm(name="q_norm"), RMSNorm(name="k_norm")(k)
        if text.section is None and text.lengths is not None and serves_short_attention(q, k):
            gain = norm.weights(self.head_dim)
            out = short_attention(q, gain, k, v, text.lengths)
        else:
            out = read_prompt(_normalized(norm, q), k, v, text.lengths, text)
        (y,) = Linear((width,), self.dtype, scale=0.3, name="out")(out.reshape(x.shape))
        return y


def _heads(x: Tokens, head_dim: int) -> Float[Array, "B L N E"]:
    return x.reshape(*x.shape[:2], -1, head_dim)


def _normalized(
    norm: RMSNorm, x: Float[Array, "B L N D"], rotary: Rotary | None = None
) -> Float[Array, "B L N D"]:
    """Normalises heads and turns them, if it is told by what; one pass by a kernel."""
    table = None if rotary is None else rotary.tokens()
    if serves_head_norm(x, table):
        return head_norm(x, norm.weights(x.shape[-1]), table)
    y = norm(x)
    return y if rotary is None else rotate(y, rotary).astype(x.dtype)
