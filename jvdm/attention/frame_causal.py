"""A token attends to its own frame and to earlier ones."""

import dataclasses

import numpy as np

from jvdm.attention.policy import AttentionCall, Policy, TokenGrid
from jvdm.errors import ConfigError
from pallas_kernels import BlockMask


@dataclasses.dataclass(frozen=True)
class FrameCausal(Policy):
    """Block-causal attention: frames see the past and themselves, never the future.

    With it a finished frame does not change when later frames are generated,
    which caching of keys and values relies on (CausVid, arXiv:2412.07772).
    """

    block: int = 1
    """Latent frames that see each other freely."""

    def init(self, grid: TokenGrid) -> None:
        """The mask is a function of the grid alone."""
        limit = BlockMask.MAX_TIME * self.block
        if self.block < 1 or grid.frames > limit:
            raise ConfigError(
                f"causal attention in blocks of {self.block} over {grid.frames} latent frames",
                f"a block has at least 1 frame, and there are at most {BlockMask.MAX_TIME} blocks",
                "choose larger blocks, or generate in windows of fewer frames",
            )

    def select(self, q, k, v, state, call: AttentionCall):
        """Allows keys whose block of frames is not later than the query's."""
        per_block = call.grid.tokens_per_frame * self.block
        return BlockMask.causal(np.arange(call.grid.tokens) // per_block), state
