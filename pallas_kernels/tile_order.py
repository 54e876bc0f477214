"""Tokens of a grid in the order of its tiles, so that blocks of a sequence are compact patches."""

import dataclasses
import functools
import itertools
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped


@dataclasses.dataclass(frozen=True)
class TileOrder:
    """One block of tokens per tile of a grid: tiles in raster order, tokens of a tile too.

    A tile at the border may be short. Every block has as many slots as a whole tile has
    tokens, so behind the tokens of a short one are slots without a token: padding. Arrays
    that are known on the host, so that nothing is permuted twice and lists are constants.

    Attributes:
        grid: Tokens along time, rows and columns, in raster order before.
        tile: Tokens of a tile along each.

    Raises:
        ValueError: If a size is not positive, or a tile is larger than the grid.
    """

    grid: tuple[int, int, int]
    tile: tuple[int, int, int]

    def __post_init__(self) -> None:
        if any(not 1 <= part <= side for part, side in zip(self.tile, self.grid, strict=True)):
            raise ValueError(
                f"tiles of {self.tile} tokens on a grid of {self.grid}: a side must be from 1 to "
                "that of the grid"
            )

    @property
    def tokens(self) -> int:
        """Tokens of the grid."""
        return math.prod(self.grid)

    @property
    def block(self) -> int:
        """Slots of a block: tokens of a whole tile."""
        return math.prod(self.tile)

    @property
    def tiles(self) -> tuple[int, int, int]:
        """Tiles along time, rows and columns."""
        counts = (-(-side // part) for side, part in zip(self.grid, self.tile, strict=True))
        return tuple(counts)  # pyright: ignore[reportReturnType]

    @property
    def num_slots(self) -> int:
        """Length of the sequence in this order, padding included."""
        return math.prod(self.tiles) * self.block

    @property
    def is_padded(self) -> bool:
        """Whether some slots hold no token."""
        return self.num_slots > self.tokens

    @functools.cached_property
    def slots(self) -> Int[np.ndarray, " slots"]:
        """The token in each slot; `tokens` where there is none."""
        raster = np.arange(self.tokens).reshape(self.grid)
        places = itertools.product(*map(range, self.tiles))
        found = np.full((math.prod(self.tiles), self.block), self.tokens)
        for row, place in zip(found, places, strict=True):
            sides = zip(place, self.tile, strict=True)
            patch = raster[tuple(slice(at * size, (at + 1) * size) for at, size in sides)].ravel()
            row[: len(patch)] = patch
        return found.ravel()

    @functools.cached_property
    def places(self) -> Int[np.ndarray, " tokens"]:
        """The slot of each token."""
        return np.argsort(self.slots, kind="stable")[: self.tokens]

    @property
    def holds(self) -> Bool[np.ndarray, " slots"]:
        """Which slots hold a token."""
        return self.slots < self.tokens

    @property
    def lengths(self) -> Int[np.ndarray, " blocks"]:
        """Tokens of each block; they come first in it."""
        return self.holds.reshape(-1, self.block).sum(1)

    def apply(self, x: Shaped[Array, "..."], axis: int = 1) -> Shaped[Array, "..."]:
        """Puts the tokens along an axis in this order; slots without a token are 0."""
        return jnp.take(x, self.slots, axis, mode="fill", fill_value=0)

    def undo(self, x: Shaped[Array, "..."], axis: int = 1) -> Shaped[Array, "..."]:
        """Puts the tokens along an axis back in raster order, without padding."""
        return jnp.take(x, self.places, axis)
