"""A token attends to its own frame and to earlier ones."""

import dataclasses

import jax.numpy as jnp

from jvdm.attention.policy import AttentionCall, TokenGrid


@dataclasses.dataclass(frozen=True)
class FrameCausal:
    """Block-causal attention: frames see the past and themselves, never the future.

    With it a finished frame does not change when later frames are generated,
    which caching of keys and values relies on (CausVid, arXiv:2412.07772).
    """

    block: int = 1
    """Latent frames that see each other freely."""

    def init(self, grid: TokenGrid) -> None:
        """The mask is a function of the grid alone."""

    def select(self, q, k, v, state, call: AttentionCall):
        """Allows keys whose block of frames is not later than the query's."""
        block = jnp.arange(call.grid.tokens) // (call.grid.tokens_per_frame * self.block)
        return (block[:, None] >= block[None, :])[None, None], state
