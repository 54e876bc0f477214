"""Attention to the window and to the first frames of the block after it, which are cached."""

import dataclasses
import typing

import flax.struct
import jax.numpy as jnp

from jvdm.arrays import Array, Float, Int
from jvdm.attention.policy import AttentionCall, Policy, TokenGrid
from jvdm.errors import ConfigError
from pallas_kernels import BlockMask


@typing.no_type_check
@flax.struct.dataclass
class FirstFrames:
    """Keys without positions, values, and the frame where the window began that they are of.

    Attributes:
        k: `[B, L, N, D]`, of the first frames of the block that a layer saw last.
        v: `[B, L, N, D]`, values.
        frame: i32[], -1 before the first call.
    """

    k: Float[Array, "B L N D"]
    v: Float[Array, "B L N D"]
    frame: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class NextBlock(Policy):
    """Tokens of a window see each other, and the first frames of the next, noisier block.

    A window is `context` frames and a block behind them. Blocks come from the last to the first,
    so that each layer has seen the next block just before; its keys get places behind the window.

    Reference: DualParal, arXiv:2505.21070, section 3.2 (the feature cache).
    """

    block: int = 8
    """Latent frames of a block."""
    context: int = 8
    """Latent frames of the next block that are seen, at most `block`."""

    def init(self, grid: TokenGrid) -> FirstFrames:
        """Returns an empty cache."""
        if not 0 < self.context <= self.block or grid.frames != self.context + self.block:
            raise ConfigError(
                f"a window of {grid.frames} latent frames for blocks of {self.block}",
                f"it has {self.context} frames of context, at least 1 and at most a block",
                "use this policy with the system dualparal",
            )
        tokens = self.context * grid.tokens_per_frame
        nothing = jnp.zeros((grid.batch, tokens, grid.heads, grid.head_dim), grid.dtype)
        return FirstFrames(nothing, nothing, jnp.int32(-1))

    def attended(self, q, k, v, state: FirstFrames, call: AttentionCall):
        """Puts the cache behind the window if it is that of the next block, and keeps its own."""
        places = (call.grid.frames + jnp.arange(self.context)).astype(jnp.float32)
        keys = jnp.concatenate([call.turn(k), call.turn(state.k, places)], 1)
        values = jnp.concatenate([v, state.v], 1)
        held = state.frame == call.row.frame + self.block
        count = jnp.where(held, keys.shape[1], k.shape[1])
        mask = BlockMask.full(q.shape[1], keys.shape[1], kv_count=count)
        first = self.context * call.grid.tokens_per_frame
        own, values_of_own = (x[:, first : 2 * first].astype(state.k.dtype) for x in (k, v))
        return keys, values, mask, FirstFrames(own, values_of_own, call.row.frame)

    def select(self, q, k, v, state: FirstFrames, call: AttentionCall):
        """What is attended to depends on the cache (`attended`)."""
        raise NotImplementedError
