"""Blocks of video tokens: compact patches of one latent frame, of a size that fits the grid."""

import dataclasses
import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Bool, Float, Int
from jvdm.attention.policy import TokenGrid
from jvdm.errors import ConfigError
from pallas_kernels import BlockMask, TileOrder

LARGEST = 128
"""Tokens of a block that kernels like best."""
PADDED = 1.12
"""How many times as many slots they may need as blocks of half the size, with which kernels are a
fifth slower: work grows with the square of the slots."""
ENOUGH = 128
"""Blocks of a sequence below which a smaller size is chosen: densities of 1 % can be told."""


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The sequence of a grid in blocks, frame after frame.

    Patches of single frames, because every frame has its own noise level.
    """

    grid: TokenGrid
    order: TileOrder
    """Order of the tokens of a frame."""

    @property
    def size(self) -> int:
        """Slots of a block."""
        return self.order.block

    @property
    def tiles(self) -> tuple[int, int, int]:
        """Blocks along time, rows and columns."""
        return (self.grid.frames, *self.order.tiles[1:])

    @property
    def count(self) -> int:
        """Blocks of the sequence."""
        return math.prod(self.tiles)

    @property
    def slots(self) -> int:
        """Slots of the sequence, padding included."""
        return self.count * self.size

    @property
    def frames(self) -> Int[np.ndarray, " blocks"]:
        """The frame of each block."""
        return np.arange(self.count) // math.prod(self.order.tiles)

    @property
    def lengths(self) -> Int[np.ndarray, " blocks"]:
        """Tokens of each block."""
        return np.tile(self.order.lengths, self.grid.frames)

    @property
    def holds(self) -> Bool[np.ndarray, " slots"]:
        """Which slots of the sequence hold a token."""
        return np.tile(self.order.holds, self.grid.frames)

    def ordered(self, x: Float[Array, "B L *rest"]) -> Float[Array, "B S *rest"]:
        """Returns tokens that are in raster order in the order of blocks, padding included."""
        frames = x.reshape(x.shape[0], self.grid.frames, -1, *x.shape[2:])
        return self.order.apply(frames, 2).reshape(x.shape[0], -1, *x.shape[2:])

    def raster(self, x: Float[Array, "B S *rest"]) -> Float[Array, "B L *rest"]:
        """Returns tokens that are in the order of blocks in raster order: inverse of `ordered`."""
        frames = x.reshape(x.shape[0], self.grid.frames, -1, *x.shape[2:])
        return self.order.undo(frames, 2).reshape(x.shape[0], -1, *x.shape[2:])

    def mask(
        self, listed: Bool[Array | np.ndarray, "B N Q K"], width: int | None = None
    ) -> BlockMask:
        """Returns the lists of a map of blocks, of `width` entries; padding is no key."""
        short = jnp.asarray(self.lengths[None], jnp.int32) if self.order.is_padded else None
        sizes: Any = {"q_len": self.slots, "kv_len": self.slots, "kv_lengths": short}
        sizes |= {"block_q": self.size, "block_kv": self.size}
        return BlockMask.from_dense(listed, max_blocks=width, **sizes)

    def everything(self) -> BlockMask:
        """Returns the mask of all tokens, for a sequence with padding."""
        return self.mask(np.ones((1, 1, self.count, self.count), bool))

    def pool(self, x: Float[Array, "B L N D"]) -> Float[Array, "B N Q D"]:
        """Returns the float32 mean of the tokens of each block."""
        held = jnp.where(self.holds[None, :, None, None], x.astype(jnp.float32), 0.0)
        total = held.reshape(x.shape[0], self.count, self.size, *x.shape[2:]).sum(2)
        return jnp.moveaxis(total / self.lengths[None, :, None, None], 1, 2)

    def spread(self, x: Float[Array, "B N Q D"]) -> Float[Array, "B L N D"]:
        """Gives every slot of a block the value of the block."""
        return jnp.repeat(jnp.moveaxis(x, 2, 1), self.size, 1)


@functools.lru_cache(maxsize=64)
def blocks_of(grid: TokenGrid, size: int = 0) -> Blocks:
    """Divides a grid into blocks.

    Args:
        grid: Layout of the tokens.
        size: Tokens of a block; 0 is the largest power of two up to `LARGEST` that gives
            `ENOUGH` blocks, or half of `LARGEST` if that leaves less padding (`PADDED`).

    Returns:
        Blocks whose tile leaves the least padding, and is the squarest of such, rather wide
        than high (DraftAttention's are 8 x 16).

    Raises:
        ConfigError: If a frame has fewer tokens than a block, or no tile has so many.
    """
    per_frame = grid.tokens_per_frame
    if size == 0:
        fits = min(per_frame, max(grid.tokens // ENOUGH, 1), LARGEST)
        largest = _divided(grid, 1 << (fits.bit_length() - 1))
        half = _divided(grid, LARGEST // 2) if largest.size == LARGEST else largest
        return half if largest.slots > PADDED * half.slots else largest
    if not 1 <= size <= per_frame:
        raise ConfigError(
            f"attention in blocks of {size} tokens",
            f"a latent frame has {grid.height} x {grid.width} tokens",
            "use smaller blocks, a larger picture, or block=0, which chooses",
        )
    return _divided(grid, size)


def _divided(grid: TokenGrid, size: int) -> Blocks:
    """Divides a grid into blocks of a size."""
    sides = [(rows, size // rows) for rows in range(1, size + 1) if size % rows == 0]
    fitting = [tile for tile in sides if tile[0] <= grid.height and tile[1] <= grid.width]
    if not fitting:
        raise ConfigError(
            f"attention in blocks of {size} tokens",
            f"no tile of {size} tokens fits into {grid.height} x {grid.width}",
            "use another block size, or block=0, which chooses",
        )

    def worth(tile: tuple[int, int]) -> tuple[int, int, int]:
        rows, columns = tile
        slots = -(-grid.height // rows) * -(-grid.width // columns) * size
        return slots, max(tile) - min(tile), rows

    best = min(fitting, key=worth)
    return Blocks(grid, TileOrder((1, grid.height, grid.width), (1, *best)))
