"""Addressed randomness: a value is a function of where it is used, not of when.

One seed feeds every use through a name, a sample index, an absolute latent
frame and an update count. Batch size, padding, window and device count
therefore never change a draw.
"""

import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Float, Int, Key


def named(key: Key, name: str) -> Key:
    """Returns the stream of `key` that is reserved for the use called `name`."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def addressed_normal(
    key: Key,
    samples: Int[Array, " B"],
    frames: Int[Array, " F"],
    shape: Sequence[int],
    updates: Int[Array, "B F"] | None = None,
) -> Float[Array, "B F ..."]:
    """Draws standard normal noise for every addressed latent frame.

    Args:
        key: Stream of the run.
        samples: Index of each sample in the whole job.
        frames: Absolute index of each latent frame in its video.
        shape: Shape of one latent frame, `(H, W, C)`.
        updates: How often each frame was updated before, for solvers that draw
            fresh noise; None draws the starting noise.

    Returns:
        float32 noise `[B, F, *shape]`; a frame's values depend on `key`, its
        sample, its frame index and its update count alone.
    """

    def frame_noise(sample, frame, update):
        address = jax.random.fold_in(jax.random.fold_in(key, sample), frame)
        if updates is not None:
            address = jax.random.fold_in(address, update)
        return jax.random.normal(address, tuple(shape), jnp.float32)

    if updates is None:
        updates_or_zero = jnp.zeros((len(samples), len(frames)), jnp.int32)
    else:
        updates_or_zero = updates
    over_frames = jax.vmap(frame_noise, in_axes=(None, 0, 0))
    return jax.vmap(over_frames, in_axes=(0, None, 0))(samples, frames, updates_or_zero)
