"""Radial attention: the farther a frame, the nearer the place in it that is attended to."""

import dataclasses
import functools
from typing import ClassVar

import numpy as np

from jvdm.arrays import Bool, Int
from jvdm.attention.blocks import Blocks
from jvdm.attention.policy import AttentionCall
from jvdm.attention.sparse import Sparse
from jvdm.errors import ConfigError

Tiles = tuple[int, int, int]
"""Patches along time, rows and columns."""


@dataclasses.dataclass(frozen=True)
class Radial(Sparse):
    """A patch attends to discs of patches whose radius halves with each doubling of the distance.

    In its own frame the radius is `r`, in the next one `r / 2`, in the two after that `r / 4`, then
    `r / 8` for four frames, and so on. Where it is less than a patch, the same patch is attended to
    in every second, fourth, ... frame. So the cost grows as `F log F` with the frames. The lists
    are constants of the grid.

    What is ours: `r` is the largest whose share is at most `density`, where the authors set a
    factor for each model; discs of patches, where theirs are bands of the raster order, which are
    rows of pixels; no limit below which all of a near frame is attended to.

    Reference: Radial Attention, Li et al., arXiv:2506.19852, section 4.2.
    """

    equal: ClassVar[str] = "its lists are the same in all rows, layers and heads"

    dense_rows: float = 0.25
    dense_layers: int = 1
    sink: int = 0
    """First latent frames of a window that all patches attend to; the authors use 1 for Wan."""

    def choose(self, q, k, v, call: AttentionCall, blocks: Blocks):
        """Marks the discs of each patch."""
        marked = self.discs(blocks)
        return marked[None, None], int(marked.sum(1).max())

    def discs(self, blocks: Blocks) -> Bool[np.ndarray, "Q K"]:
        """Returns which patch attends to which.

        Raises:
            ConfigError: If the sink and a patch itself are more than the density allows.
        """
        most, frames = self.listed(blocks) / blocks.count, blocks.tiles[0]
        least = _radial(blocks.tiles, 0.0, self.sink).mean()
        if not 0 <= self.sink <= frames or least > most:
            raise ConfigError(
                f"a sink of {self.sink} of {frames} latent frames at density {self.density:g}",
                "it and the patch itself are listed by every patch",
                f"use a sink of 0 to {frames}, or a larger density",
            )
        return _radial(blocks.tiles, _radius(blocks.tiles, most, self.sink), self.sink)


@functools.lru_cache(maxsize=64)
def _radius(tiles: Tiles, most: float, sink: int) -> float:
    """Returns the largest radius, to a hundredth of a patch, whose share is at most `most`."""
    low, high = 0.0, 4.0 * tiles[0] * max(tiles[1:])
    while high - low > 0.01:
        middle = (low + high) / 2
        fits = _radial(tiles, middle, sink).mean() <= most
        low, high = (middle, high) if fits else (low, middle)
    return low


@functools.lru_cache(maxsize=64)
def _radial(tiles: Tiles, radius: float, sink: int) -> Bool[np.ndarray, "Q K"]:
    """Returns which patch attends to which, in the order of frames, rows, columns."""
    frame, row, column = np.unravel_index(np.arange(np.prod(tiles)), tiles)
    apart = np.abs(frame[:, None] - frame[None])
    reach = radius / 2.0 ** _bits(tiles[0])[apart]
    beside = np.hypot(row[:, None] - row[None], column[:, None] - column[None])
    every = np.floor(1 / np.maximum(reach, 1e-9)).astype(np.int64)
    seldom = (beside == 0) & (apart % np.maximum(every, 1) == 0)
    return np.where(reach >= 1, beside <= reach, seldom) | (frame[None] < sink)


def _bits(frames: int) -> Int[np.ndarray, " F"]:
    """Returns how many binary digits each distance has: 0, 1, 2, 2, 3, 3, 3, 3, ..."""
    return np.array([distance.bit_length() for distance in range(frames)])
