"""How close frames are to the true ones: PSNR and SSIM per clip."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jvdm.arrays import Array, Bool, Float, Frames

BEST_PSNR = 100.0
"""PSNR in dB of equal frames; keeps means finite."""

Numbers = TypeVar("Numbers", Array, float)

_OBJECT_CHROMA = 0.15  # ground and sky are grey or pale: below this


def psnr(frames: Frames, truth: Frames, at: Bool[Array, " T"] | None = None) -> Float[Array, " B"]:
    """Peak signal-to-noise ratio of each clip in dB, over all frames or those `at` marks."""
    error = ((frames - truth) ** 2).mean((2, 3, 4))
    at = jnp.ones(error.shape[1], bool) if at is None else at
    return decibels((error * at[None]).sum(1) / at.sum())


def object_pixels(frames: Frames) -> Bool[Array, "B T H W"]:
    """Marks pixels that are coloured rather than grey."""
    return jnp.abs(frames - frames.mean(-1, keepdims=True)).max(-1) > _OBJECT_CHROMA


def object_square_error(frames: Frames, truth: Frames) -> Float[Array, " B"]:
    """Mean over the pixels that are coloured in the true clip, those of objects; 0 without one."""
    coloured, error = object_pixels(truth), ((frames - truth) ** 2).mean(-1)
    return (error * coloured).sum((1, 2, 3)) / jnp.maximum(coloured.sum((1, 2, 3)), 1.0)


def ssim(frames: Frames, truth: Frames) -> Float[Array, " B"]:
    """Mean structural similarity of each clip, over frames, channels and positions.

    Gaussian window of 11 pixels and standard deviation 1.5, constants .01 and .03, only
    positions where the window lies inside the frame (Wang et al. 2004,
    doi:10.1109/TIP.2003.819861).
    """
    # At once, and not by five windows, each of which XLA for GPUs would compile: for minutes.
    moments = jnp.stack([frames, truth, frames * frames, truth * truth, frames * truth])
    mean_x, mean_y, square_x, square_y, product = jax.vmap(_window)(moments)
    var_x, var_y = square_x - mean_x**2, square_y - mean_y**2
    cross = product - mean_x * mean_y
    light, contrast = 0.01**2, 0.03**2
    top = (2 * mean_x * mean_y + light) * (2 * cross + contrast)
    bottom = (mean_x**2 + mean_y**2 + light) * (var_x + var_y + contrast)
    return (top / bottom).mean((1, 2, 3, 4))


def decibels(square_error: Numbers, best: float = BEST_PSNR) -> Numbers:
    """PSNR of a mean squared error, for values in 0..1; at most `best`. A float gives a float."""
    xp: Any = jnp if isinstance(square_error, jax.Array) else np
    return -10.0 * xp.log10(xp.maximum(square_error, 10.0 ** (-best / 10)))


def _window(x: Frames) -> Array:
    """Gaussian mean around every position, valid positions only."""
    offset = jnp.arange(-5, 6, dtype=jnp.float32)
    weight = jnp.exp(-(offset**2) / (2 * 1.5**2))
    weight = weight / weight.sum()
    for axis in (2, 3):
        size = x.shape[axis] - 10
        parts = (lax.slice_in_dim(x, start, start + size, axis=axis) for start in range(11))
        x = jnp.asarray(sum(w * part for w, part in zip(weight, parts, strict=True)))
        x = lax.optimization_barrier(x)  # or XLA for GPUs sums the rows again for every column
    return x
