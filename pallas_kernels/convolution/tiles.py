"""What the kernel for Hopper computes together and in which order, and weights as it reads them."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.convolution.reference import Inputs

TAPS = 3
CHANNELS = 32  # that are loaded together
COLUMNS = 64  # of a tile, in cells
SEEN = (96, 192)
"""Channels of results that were seen right on an H200."""


class Sizes(NamedTuple):
    """What a block of threads computes together, and how it uses shared memory."""

    rows: int  # of a warpgroup
    features: int
    taps: int  # tiles of weights
    added: int  # rows of what is added, of a warpgroup


def sizes_of(features: int) -> Sizes:
    """Returns the tiles for so many channels of results."""
    return Sizes(2, 192, 2, 1) if features == 192 else Sizes(4, 96, 3, 2)


def refusal(x: Any, features: int) -> str:
    """Returns why the kernel cannot serve a call; empty if it can."""
    width, channels = x.shape[3:]
    if x.dtype != jnp.bfloat16:
        return f"the frames are {x.dtype}, not bfloat16"
    if features not in SEEN:
        return f"results have {features} channels, not {' or '.join(map(str, SEEN))}"
    if channels % CHANNELS or width % 8:
        return f"{channels} channels are no multiple of {CHANNELS}, or {width} columns of 8"
    return ""


def in_order(kernel: Float[Array, "3 3 3 C D"]) -> Float[Array, "N 3 D c"]:
    """Returns weights as they are read: those of a column of taps and of a slab together."""
    *taps, channels, features = kernel.shape
    parts = kernel.reshape(*taps, channels // CHANNELS, CHANNELS, features)
    parts = parts.transpose(0, 3, 2, 1, 5, 4)
    return parts.reshape(-1, TAPS, features, CHANNELS)


class Tile(NamedTuple):
    """Results of one frame that a block of threads computes together."""

    frame: Any  # of all videos
    time: Any  # of its video
    row: Any
    column: Any
    first: Any  # of the taps in time that see a frame


class Grid(NamedTuple):
    """All tiles, in the order in which they are computed."""

    videos: int
    frames: int  # of a video
    high: int  # tiles
    wide: int
    slabs: int  # of channels
    rows: int  # of a tile
    together: int  # tiles that are computed at once
    starts: bool  # whether no frame is before the first

    @classmethod
    def of(cls, inputs: Inputs, processors: int, sizes: Sizes) -> "Grid":
        """Returns the tiles of a call."""
        (batch, frames, height, width, channels), rows = inputs.x.shape, 2 * sizes.rows
        high, wide = -(-height // rows), -(-width // COLUMNS)
        slabs, starts = channels // CHANNELS, inputs.before is None
        return cls(batch, frames, high, wide, slabs, rows, processors, starts)

    @property
    def total(self) -> int:
        """Number of tiles."""
        return self.videos * self.frames * self.high * self.wide

    def tile(self, number: Any) -> Tile:
        """Returns a tile: columns run fastest, then rows of a strip, time, and strips.

        A strip are as many rows as are computed at once: what the next frame reads of this one is
        in the cache then.
        """
        strip = max(1, min(self.high, self.together // self.wide))
        whole = self.videos * self.frames * strip * self.wide
        above, rest = lax.div(number, whole) * strip, lax.rem(number, whole)
        here = jnp.minimum(strip, self.high - above) * self.wide
        frame, rest = lax.div(rest, here), lax.rem(rest, here)
        row, column = above + lax.div(rest, self.wide), lax.rem(rest, self.wide)
        time = lax.rem(frame, self.frames)
        first = jnp.maximum(TAPS - 1 - time, 0) if self.starts else jnp.int32(0)
        return Tile(frame, time, row * self.rows, column * COLUMNS, first)

    def steps(self, tile: Tile) -> Any:
        """Returns how often cells are loaded for a tile."""
        return (TAPS - tile.first) * self.slabs

    def step(self, tile: Tile, step: Any) -> tuple[Any, Any, Any]:
        """Returns the tap in time and the slab of a step, and where its weights are `in_order`."""
        tap, slab = tile.first + lax.div(step, self.slabs), lax.rem(step, self.slabs)
        return tap, slab, (tap * self.slabs + slab) * TAPS
