"""Clips of discs on a grey ground: what is in them is known without the world."""

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.evaluation.hue import Tracks, track
from jvdm.world.render import PALETTE
from jvdm.world.scene import COLORS

track_clips = jax.jit(track)
GROUND = 0.42
FRAMES = 9


def disc(clip, color, center, radius, frames=slice(None)):
    """Paints a disc; `center` is a row and a column, or one such pair per frame."""
    height, width = clip.shape[1:3]
    rows, columns = np.mgrid[:height, :width] + 0.5
    centers = np.broadcast_to(np.asarray(center, float), (len(clip), 2))
    for frame in range(len(clip))[frames]:
        row, column = centers[frame]
        inside = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
        clip[frame][inside] = 0.9 * PALETTE[COLORS.index(color)]
    return clip


def ground(frames=FRAMES, size=64):
    return np.full((frames, size, size, 3), GROUND, np.float32)


def read(clip, *colors) -> tuple[Tracks, jnp.ndarray]:
    """Tracks of the named colours, and which of three slots are active."""
    slots = [COLORS.index(color) for color in colors] + [0] * (3 - len(colors))
    active = jnp.arange(3)[None] < len(colors)
    return track_clips(jnp.asarray(clip)[None], jnp.asarray([slots]), active), active
