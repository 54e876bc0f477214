"""Windows of tiles: which tiles see which, as maps of blocks that are known on the host."""

import math

import numpy as np
from jaxtyping import Bool

Sizes = tuple[int, int, int]
"""Along time, rows and columns."""


def sliding_windows(tiles: Sizes, window: Sizes) -> Bool[np.ndarray, "Q K"]:
    """Says which tiles see which through a window around each that stays inside the grid.

    At a border the window is moved inwards, so that every tile sees equally many (sliding tile
    attention, Zhang et al., arXiv:2502.04507).

    Args:
        tiles: Tiles along each axis, in raster order.
        window: Tiles that are seen along each axis; one that is even reaches further back.

    Raises:
        ValueError: If a window is larger than the grid, or empty.
    """
    _check(tiles, window)

    def seen(count: int, size: int) -> Bool[np.ndarray, "q k"]:
        first = np.clip(np.arange(count) - size // 2, 0, count - size)[:, None]
        other = np.arange(count)[None]
        return (first <= other) & (other < first + size)

    return _every_axis([seen(*sizes) for sizes in zip(tiles, window, strict=True)])


def parted_windows(
    tiles: Sizes, window: Sizes, shift: Sizes = (0, 0, 0)
) -> Bool[np.ndarray, "Q K"]:
    """Says which tiles share a window of a partition of the grid.

    With another shift in every second layer, what is seen spreads over the grid (Swin, Liu et
    al., arXiv:2103.14030). Windows that the border cuts are smaller; nothing wraps around.

    Args:
        tiles: Tiles along each axis, in raster order.
        window: Tiles of a window along each axis.
        shift: Tiles by which the partition is moved.

    Raises:
        ValueError: If a window is larger than the grid, or empty.
    """
    _check(tiles, window)
    members = [
        (np.arange(count) + move) // size
        for count, size, move in zip(tiles, window, shift, strict=True)
    ]
    return _every_axis([own[:, None] == own[None] for own in members])


def _every_axis(maps: list[np.ndarray]) -> Bool[np.ndarray, "Q K"]:
    """Joins the maps of single axes: a tile is seen where it is along all of them."""
    size = math.prod(len(part) for part in maps)
    return np.einsum("ad,be,cf->abcdef", *maps).reshape(size, size)


def _check(tiles: Sizes, window: Sizes) -> None:
    if any(not 1 <= size <= count for size, count in zip(window, tiles, strict=True)):
        raise ValueError(
            f"a window of {window} tiles on a grid of {tiles}: a side must be from 1 to that of "
            "the grid"
        )
