"""Which of the world's colours a pixel shows, by chromaticity alone."""

import jax.numpy as jnp

from jvdm.arrays import Array, Float, Int
from jvdm.world.render import PALETTE
from jvdm.world.scene import COLORS

# Half object and half ground has a saturation near .6: the outline of a mask then runs
# through the middle of a blurred edge. Sky has .23, ground 0. The darkest octant in full
# shadow has value .17.
_MIN_SATURATION, _MIN_VALUE, _MAX_HUE_ERROR = 0.5, 0.12, 20.0


def classify(frames: Float[Array, "... 3"]) -> Int[Array, "..."]:
    """Names the palette colour of every pixel: an index of `COLORS`, -1 for none."""
    sector, chroma = _hue(frames)
    top = frames.max(-1)
    best = jnp.full(top.shape, _MAX_HUE_ERROR)
    label = jnp.full(top.shape, -1, jnp.int8)
    hues = _hue(jnp.asarray(PALETTE))[0]
    for index in range(len(COLORS)):
        error = 60.0 * jnp.abs((sector - hues[index] + 3.0) % 6.0 - 3.0)
        label = jnp.where(error < best, jnp.int8(index), label)
        best = jnp.minimum(error, best)
    vivid = (chroma > _MIN_SATURATION * top) & (top > _MIN_VALUE)
    return jnp.where(vivid, label, -1).astype(jnp.int32)


def _hue(rgb):
    """Sextant of the hue, 0..6, and the difference of the largest and smallest channel."""
    top, bottom = rgb.max(-1), rgb.min(-1)
    chroma = jnp.maximum(top - bottom, 1e-4)
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    sector = jnp.where(
        top == red,
        ((green - blue) / chroma) % 6,
        jnp.where(top == green, (blue - red) / chroma + 2, (red - green) / chroma + 4),
    )
    return sector, chroma
