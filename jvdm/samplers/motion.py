"""Levels that follow a video which is edited: where it moves fast, less noise is put on it."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float, UInt8, no_type_check
from jvdm.errors import ConfigError
from jvdm.samplers.levels import explicit_levels


@no_type_check
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MotionLevels:
    """Levels as given, the first of which every frame of an edited video has for itself.

    A frame starts at `n = (1 - keep) (first - less min(motion / full, 1)) + keep n_before`, where
    `motion` is that of `motion_of`. Noise hides what changes fast, which is then drawn elsewhere.

    Attributes:
        levels: The levels above 0, from the first one on.
        less: What a frame of full motion starts below the first.
        full: Motion that counts as full.
        keep: Share of the start of the frame before, so that levels do not jump.

    Raises:
        ConfigError: If a number is out of its range, or a frame would start below the second level.

    Reference: StreamDiffusionV2, arXiv:2511.07399: 700, 500, 400 and 200 of 1000, less by 100 at
    differences of .2, a tenth of what was before.
    """

    levels: Sequence[float] = (0.7, 0.5, 0.4, 0.2)
    less: float = 0.1
    full: float = 0.2
    keep: float = 0.1

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return len(self()) - 1

    def __call__(self) -> Float[Array, " levels"]:
        """Returns the levels of a video that does not move."""
        levels = explicit_levels(self.levels)
        below = float(levels[0] - levels[1])
        if not (0 <= self.less < below and self.full > 0 and 0 <= self.keep < 1):
            raise ConfigError(
                f"levels that fall by {self.less} at a motion of {self.full}, keeping {self.keep}",
                f"the second level is {below:.3g} below the first, and a share is from 0 to 1",
                "use less noise by .1 at .2, and keep .1",
            )
        return levels

    def of_motion(self, motion: Float[np.ndarray, " F"]) -> Float[Array, "levels F"]:
        """Returns a grid for every frame, whose motion this is."""
        levels = np.asarray(self())
        starts, before = [], float(levels[0])
        for moved in motion:
            wanted = float(levels[0]) - self.less * min(float(moved) / self.full, 1.0)
            before = (1 - self.keep) * wanted + self.keep * before
            starts.append(before)
        grids = np.repeat(levels[:, None], len(motion), 1)
        grids[0] = starts
        return jnp.asarray(grids, jnp.float32)


def motion_of(
    frames: UInt8[np.ndarray, "T H W 3"], ends: Sequence[int]
) -> Float[np.ndarray, " latent_frames"]:
    """Returns how much each latent frame moves: the largest difference of its frames from the last.

    A difference is the root of the mean square, of RGB in -1..1.

    Args:
        frames: Pixel frames.
        ends: How many frames the first latents stand for, one, two and so on.
    """
    shown = frames.astype(np.float32) / 127.5 - 1.0
    change = np.sqrt(np.square(np.diff(shown, axis=0)).mean((1, 2, 3)))
    change = np.concatenate([np.zeros(1, np.float32), change])  # of a first frame nothing is known
    return np.maximum.reduceat(change, [0, *ends[:-1]])
