"""Addressed noise of a sampling run: a draw depends on where it is used alone."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from jvdm.arrays import Array, Float, Int, Key
from jvdm.keys import addressed_normal


class Address(NamedTuple):
    """Where the entries of a latent batch stand in the whole job.

    Attributes:
        samples: i32[B], index of each sample in the job.
        frames: i32[F], absolute index of each latent frame in its video.
    """

    samples: Int[Array, " B"]
    frames: Int[Array, " F"]


def consecutive(batch: int, latent_frames: int, first_frame: int = 0) -> Address:
    """Returns the address of samples `0..batch-1` and frames from `first_frame` on."""
    return Address(jnp.arange(batch), first_frame + jnp.arange(latent_frames))


def initial_noise(
    key: Key,
    samples: Int[Array, " B"],
    latent_frames: int,
    shape: Sequence[int],
    first_frame: int | Int[Array, ""] = 0,
) -> Float[Array, "B F ..."]:
    """Draws the noise that a run starts from.

    Args:
        key: Stream of the run.
        samples: Index of each sample in the whole job; equal indices give equal noise.
        latent_frames: Number of frames to draw.
        shape: Shape of one latent frame, `(H, W, C)`.
        first_frame: Absolute index of the first of these frames.

    Returns:
        float32 standard normal noise; neither batch size nor frame count changes the
        values of a frame.
    """
    frames = first_frame + jnp.arange(latent_frames)
    return addressed_normal(key, samples, frames, shape)
