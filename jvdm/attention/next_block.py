"""Attention to the window and to the first frames of the block after it, which are cached."""

import dataclasses

import jax.numpy as jnp

from jvdm.attention.policy import AttentionCall, KeptTokens, Policy, TokenGrid
from jvdm.errors import ConfigError
from pallas_kernels import BlockMask


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

    def init(self, grid: TokenGrid) -> KeptTokens:
        """Returns an empty cache."""
        if not 0 < self.context <= self.block or grid.frames != self.context + self.block:
            raise ConfigError(
                f"a window of {grid.frames} latent frames for blocks of {self.block}",
                f"it has {self.context} frames of context, at least 1 and at most a block",
                "use this policy with the system dualparal",
            )
        return KeptTokens.none(grid, self.context * grid.tokens_per_frame)

    def attended(self, q, k, v, state: KeptTokens, call: AttentionCall):
        """Puts the cache behind the window if it is that of the next block, and keeps its own."""
        places = (call.grid.frames + jnp.arange(self.context)).astype(jnp.float32)
        keys = jnp.concatenate([call.turn(k), call.turn(state.k, places)], 1)
        values = jnp.concatenate([v, state.v], 1)
        held = state.frame == call.row.frame + self.block
        count = jnp.where(held, keys.shape[1], k.shape[1])
        mask = BlockMask.full(q.shape[1], keys.shape[1], kv_count=count)
        first = self.context * call.grid.tokens_per_frame
        own, values_of_own = (x[:, first : 2 * first].astype(state.k.dtype) for x in (k, v))
        return keys, values, mask, KeptTokens(own, values_of_own, call.row.frame)

    def select(self, q, k, v, state: KeptTokens, call: AttentionCall):
        """What is attended to depends on the cache (`attended`)."""
        raise NotImplementedError
