"""Windows in space and time: a block attends to the blocks around it."""

import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from jvdm.attention.blocks import Blocks
from jvdm.attention.patterns import box
from jvdm.attention.policy import AttentionCall, TokenGrid
from jvdm.attention.sparse import Sparse
from jvdm.errors import ConfigError
from pallas_kernels.windows import Sizes, parted_windows, sliding_windows


@dataclasses.dataclass(frozen=True)
class Window(Sparse):
    """Sliding tile attention (arXiv:2502.04507), or windows that shift (Swin, arXiv:2103.14030).

    The window is a box of blocks whose share of the grid is at most `density` and no less than
    need be by a quarter, the one of the grid's proportions; its own share is what the record
    says. Blocks are patches of one frame, where the paper's are cubes, because frames have
    their own levels.
    """

    equal: ClassVar[str] = "its lists are the same in all rows, layers and heads"

    frames: int = 0
    """Latent frames of the window; 0 lets the density choose."""
    shifted: bool = False
    """Whether windows part the grid, and move by half in odd layers, instead of sliding."""

    def init(self, grid: TokenGrid):
        """Refuses a window of more frames than there are."""
        if not 0 <= self.frames <= grid.frames:
            raise ConfigError(
                f"a window of {self.frames} latent frames",
                f"a call sees {grid.frames}",
                "use fewer, or frames=0, which chooses",
            )
        return super().init(grid)

    def choose(self, q, k, v, call: AttentionCall, blocks: Blocks):
        """Marks the window of each block."""
        window = self.window(blocks)
        if not self.shifted:
            marked = sliding_windows(blocks.tiles, window)
            return marked[None, None], math.prod(window)
        half = (window[0] // 2, window[1] // 2, window[2] // 2)
        parts = [parted_windows(blocks.tiles, window, shift) for shift in ((0, 0, 0), half)]
        return jnp.asarray(np.stack(parts))[call.layer % 2][None, None], math.prod(window)

    def window(self, blocks: Blocks) -> Sizes:
        """Returns the blocks of the window along time, rows and columns.

        Raises:
            ConfigError: If the frames that were asked for are more than the density allows.
        """
        found = box(blocks.tiles, self.listed(blocks), self.frames)
        if found is None:
            raise ConfigError(
                f"a window of {self.frames} latent frames at density {self.density:g}",
                f"the density allows {self.listed(blocks)} of {blocks.count} blocks",
                "use fewer frames, or a larger density",
            )
        return found
