"""What the kernel for Hopper computes together and in which order, and weights as it reads them."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.convolution.reference import Inputs

TAPS = 3
CHANNELS = 32  # that are loaded together
SIDE = 8  # of a square of cells, which a product of tensor cores has in its rows
SEEN = (3, 96, 192, 384)
"""Channels of results that were seen right on an H200."""


class Sizes(NamedTuple):
    """What a block of threads computes together, and how it uses shared memory."""

    squares: int  # of a warpgroup
    features: int
    taps: int  # tiles of weights
    added: int  # squares of what is added, of a warpgroup

    @property
    def chunk(self) -> int:
        """Features that lie beside each other in shared memory."""
        return min(CHANNELS, self.features)


def sizes_of(features: int) -> Sizes:
    """Returns the tiles for so many channels of results."""
    return Sizes(4, 96 if features % 96 == 0 else 16, 3, 2)


def refusal(x: Any, features: int) -> str:
    """Returns why the kernel cannot serve a call; empty if it can."""
    width, channels = x.shape[3:]
    if x.dtype != jnp.bfloat16:
        return f"the frames are {x.dtype}, not bfloat16"
    if features not in SEEN:
        return f"results have {features} channels, not one of {', '.join(map(str, SEEN))}"
    if channels % CHANNELS or width % 8:
        return f"{channels} channels are no multiple of {CHANNELS}, or {width} columns of 8"
    return ""


def in_order(kernel: Float[Array, "t 3 3 C D"], features: int) -> Float[Array, "N 3 d c"]:
    """Returns weights as they are read: those of a column of taps and of a slab together."""
    *taps, channels, total = kernel.shape
    parts = kernel.reshape(*taps, channels // CHANNELS, CHANNELS, total // features, features)
    parts = parts.transpose(5, 0, 3, 2, 1, 6, 4)
    return parts.reshape(-1, TAPS, features, CHANNELS)


class Tile(NamedTuple):
    """Results of one frame that a block of threads computes together."""

    block: Any  # of features
    frame: Any  # of all videos
    time: Any  # of its video
    row: Any
    column: Any
    first: Any  # of the taps in time that see a frame


class Grid(NamedTuple):
    """All tiles, in the order in which they are computed."""

    videos: int
    frames: int  # of a video
    blocks: int  # of features
    slabs: int  # of channels
    height: int
    width: int
    rows: int  # of a tile
    columns: int
    taps: int  # in time
    together: int  # tiles that are computed at once
    starts: bool  # whether no frame is before the first

    @classmethod
    def of(cls, inputs: Inputs, processors: int, sizes: Sizes) -> "Grid":
        """Returns the tiles of a call."""
        batch, frames, height, width, channels = inputs.x.shape
        squares = sizes.squares

        def cost(wide: int) -> tuple[int, int]:
            rows, columns = 2 * SIDE * squares // wide, SIDE * wide
            return -(-height // rows) * -(-width // columns), -columns

        # One square wide, cells with their border would not fit beside what is added.
        wide = min((n for n in range(2, squares + 1) if squares % n == 0), key=cost)
        return cls(
            batch,
            frames,
            inputs.bias.shape[0] // sizes.features,
            channels // CHANNELS,
            height,
            width,
            2 * SIDE * squares // wide,
            SIDE * wide,
            inputs.kernel.shape[0],
            processors,
            inputs.before is None,
        )

    @property
    def high(self) -> int:
        """Tiles from the first to the last row."""
        return -(-self.height // self.rows)

    @property
    def wide(self) -> int:
        """Tiles from the first to the last column."""
        return -(-self.width // self.columns)

    @property
    def total(self) -> int:
        """Number of tiles."""
        return self.videos * self.frames * self.high * self.wide * self.blocks

    def tile(self, number: Any) -> Tile:
        """Returns a tile: blocks run fastest, then columns, rows of a strip, time, and strips.

        A strip are as many rows as are computed at once: what the next frame reads of this one is
        in the cache then.
        """
        strip = max(1, min(self.high, self.together // (self.wide * self.blocks)))
        number, block = lax.div(number, self.blocks), lax.rem(number, self.blocks)
        whole = self.videos * self.frames * strip * self.wide
        above, rest = lax.div(number, whole) * strip, lax.rem(number, whole)
        here = jnp.minimum(strip, self.high - above) * self.wide
        frame, rest = lax.div(rest, here), lax.rem(rest, here)
        row, column = above + lax.div(rest, self.wide), lax.rem(rest, self.wide)
        time = lax.rem(frame, self.frames)
        first = jnp.maximum(self.taps - 1 - time, 0) if self.starts else jnp.int32(0)
        return Tile(block, frame, time, row * self.rows, column * self.columns, first)

    def steps(self, tile: Tile) -> Any:
        """Returns how often cells are loaded for a tile."""
        return (self.taps - tile.first) * self.slabs

    def step(self, tile: Tile, step: Any) -> tuple[Any, Any, Any]:
        """Returns the tap in time and the slab of a step, and where its weights are `in_order`."""
        tap, slab = tile.first + lax.div(step, self.slabs), lax.rem(step, self.slabs)
        return tap, slab, ((tile.block * self.taps + tap) * self.slabs + slab) * TAPS
