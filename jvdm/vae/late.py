"""A video that passes, some frames at a time, through convolutions that see later frames.

A convolution over three frames waits for the frame after each, so that what leaves it is one frame
late; what does not pass through it must wait as long. Each keeps the frames that it will still
need, which is the carry, and so all calls do the same: as many frames go in as come out, from a
place that the call is told. Beyond the ends of a video its first and its last frame are seen again
and again. Frames that leave before the first, or after the last, mean nothing.
"""

import jax.numpy as jnp

from jvdm.arrays import Array, Float, Int, PyTree
from jvdm.vae.conv import Features

Padded = Float[Array, "B t H W C"]


class Whole:
    """All frames of a video: nothing waits."""

    def around(self, x: Features, before: int, after: int) -> Padded:
        """Returns the frames with those around the video that a convolution sees."""
        return jnp.pad(x, ((0, 0), (before, after), (0, 0), (0, 0), (0, 0)), "edge")

    def waiting(self, x: Features, count: int) -> Features:
        """Returns the frames of `count` frames ago: here, the same."""
        del count
        return x

    def doubled(self, x: Features) -> Padded:
        """Returns two frames for each, without that before the first, which stays one."""
        return x[:, 1:]


class Passing(Whole):
    """Some frames of a video, and what the calls before have kept.

    Attributes:
        first: Which frame of the video, at the rate that it has there, the first of these is.
        total: Frames of the video, at that rate.
        after: What the next call is given as `carry`.
    """

    def __init__(self, carry: PyTree, first: Int[Array, ""], total: Int[Array, ""]):
        """Begins a call; `carry` is None in the first, before which there are only zeros."""
        self._before = None if carry is None else list(carry)
        self.first, self.total = first, total
        self.after: list[Array] = []

    def around(self, x: Features, before: int, after: int) -> Padded:
        """Returns as many more frames, of before; what comes of them is `after` frames late."""
        count = before + after
        begin, x = self.first - count, self._since(x, count)
        seen = jnp.clip(begin + jnp.arange(x.shape[1]), 0, self.total - 1) - begin
        self.first = self.first - after
        return jnp.take(x, jnp.clip(seen, 0, x.shape[1] - 1), axis=1)

    def waiting(self, x: Features, count: int) -> Features:
        """Returns the frames of `count` frames ago."""
        return self._since(x, count)[:, : x.shape[1]]

    def doubled(self, x: Features) -> Padded:
        """Returns two frames for each, of which the first of all is before the video."""
        self.first, self.total = 2 * self.first - 1, 2 * self.total - 1
        return x

    def _since(self, x: Features, count: int) -> Padded:
        """Returns the `count` frames of before and these, and keeps the last for the next call."""
        shape = (x.shape[0], count, *x.shape[2:])
        kept = jnp.zeros(shape, x.dtype) if self._before is None else self._before[len(self.after)]
        x = jnp.concatenate([kept.astype(x.dtype), x], 1)
        self.after.append(x[:, x.shape[1] - count :])
        return x
