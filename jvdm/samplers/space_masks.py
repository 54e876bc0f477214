"""Masks in space for training: which places of a clip are given, and which are to be made."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Bool, Float, Key
from jvdm.errors import ConfigError
from jvdm.keys import named
from jvdm.samplers.timesteps import per_clip, uniform_integer

_TRIES = 32  # rectangles that are drawn for a mask; with 16 one in a hundred covers too little
_ASPECT = math.log(1 / 0.3)  # of BEiT's rectangles: .3 to 3.3, evenly in its logarithm
_LARGEST = 0.6  # share of what is still to be covered that one rectangle covers at most


@dataclass(frozen=True)
class MaskedPlaces:
    """Rectangles of some frames are to be made; the rest of the clip is given, clean.

    In a share of the clips rectangles are drawn until they cover `covered` of a frame, the same in
    all frames of a range that leaves out 0 to `margin` frames at each end, so that the frames
    before and after it are given whole. In the other clips everything is to be made. Some place
    always is: the authors' program draws ranges without a frame.

    Attributes:
        share: Share of clips that have such a mask.
        covered: Share of a frame that is to be made in them, at most.
        margin: Frames that are given whole at each end, at most.
        patch: Latent cells of a side that are masked together, as many as a token has.

    Raises:
        ConfigError: If a share is none, or a count is negative.

    Reference: VDT, arXiv:2305.13311, unified spatial-temporal mask modelling, with the rectangles
    of BEiT, arXiv:2106.08254. Theirs draws one mask for a batch.
    """

    share: float = 0.2
    covered: float = 0.5
    margin: int = 3
    patch: int = 2

    def __post_init__(self) -> None:
        if not (0 <= self.share <= 1 and 0 < self.covered <= 1):
            what = f"masks of {self.covered:g} of a frame in {self.share:g} of the clips"
            raise ConfigError(what, "they are shares", "use above 0 to 1, and 0 to 1 for share")
        if self.margin < 0 or self.patch < 1:
            what = f"masks with a margin of {self.margin} frames and patches of {self.patch}"
            raise ConfigError(what, "they are counts", "use 0 or more, and patches of 1 or more")

    def __call__(
        self, key: Key, batch: int, latent_frames: int, height: int, width: int
    ) -> Bool[Array, "B F H W"]:
        """Returns which latent cells of `batch` clips are to be made."""
        rows, columns = -(-height // self.patch), -(-width // self.patch)

        def clip(key: Key) -> Array:
            draws = jax.random.uniform(named(key, "range"), (3,))
            most = min(self.margin, (latent_frames - 1) // 2)
            first, last = (uniform_integer(draw, most + 1) for draw in draws[:2])
            frames = jnp.arange(latent_frames)
            inside = (frames >= first) & (frames < latent_frames - last)
            where = self._rectangles(named(key, "rectangles"), rows, columns)
            where = jnp.repeat(jnp.repeat(where, self.patch, 0), self.patch, 1)[:height, :width]
            return (inside[:, None, None] & where[None]) | (draws[2] >= self.share)

        return per_clip(clip, key, batch)

    def _rectangles(self, key: Key, rows: int, columns: int) -> Bool[Array, "rows columns"]:
        """Returns a frame with rectangles in it: any that would cover too much is left out."""
        target = max(int(self.covered * rows * columns), 1)
        down, across = jnp.arange(rows)[:, None], jnp.arange(columns)[None]

        def add(covered: Array, draws: Array) -> tuple[Array, None]:
            left = target - covered.sum()
            area = jnp.maximum(_LARGEST * draws[0] * left, 1.0)
            aspect = jnp.exp(_ASPECT * (2 * draws[1] - 1))
            high = jnp.clip(jnp.round(jnp.sqrt(area * aspect)), 1, rows).astype(jnp.int32)
            wide = jnp.clip(jnp.round(jnp.sqrt(area / aspect)), 1, columns).astype(jnp.int32)
            top = uniform_integer(draws[2], rows - high + 1)
            side = uniform_integer(draws[3], columns - wide + 1)
            inside = (down >= top) & (down < top + high) & (across >= side) & (across < side + wide)
            more = covered | inside
            return jnp.where(more.sum() <= target, more, covered), None

        nothing = jnp.zeros((rows, columns), bool)
        covered, _ = jax.lax.scan(add, nothing, jax.random.uniform(key, (_TRIES, 4)))
        return covered


class MaskDensity(NamedTuple):
    """What a sampler of masks leaves to be made, as shares of clips.

    Attributes:
        masked: Clips in which something is given.
        frames: f64[F], mean share of each frame.
        places: f64[H, W], of each place, over the frames.
    """

    masked: float
    frames: Float[np.ndarray, " F"]
    places: Float[np.ndarray, "H W"]


def report_masks(
    masks: MaskedPlaces, key: Key, latent_frames: int, height: int, width: int, clips: int = 1024
) -> MaskDensity:
    """Draws masks and counts what they leave to be made.

    Args:
        masks: The sampler.
        key: Key of the draws.
        latent_frames: Frames per clip.
        height: Latent rows.
        width: Latent columns.
        clips: Clips to draw.
    """
    made = np.asarray(masks(key, clips, latent_frames, height, width))
    some = float((~made).any((1, 2, 3)).mean())
    return MaskDensity(some, made.mean((0, 2, 3)), made.mean((0, 1)))
