"""Patterns of blocks that know nothing of queries and keys, and tables of them, head by head."""

import dataclasses
import functools
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from jvdm.arrays import Bool, Float, Int
from jvdm.attention.blocks import Blocks
from jvdm.errors import ConfigError
from pallas_kernels.windows import Sizes, sliding_windows

PATTERNS = ("diagonal", "crossing", "stripe")
"""Near in the sequence; near in place, in all frames; some columns for all queries."""
WINDOWS = ("window", "tube", "plane")
"""Boxes around each that slide, of sliding tile attention (arXiv:2502.04507): of the proportions of
the grid, through all frames, in its own frame."""
FIELDS = ("weights", "grid", "block", "counts", "costs", "errors", "columns", "names")


def candidates(
    counts: tuple[int, ...], names: tuple[str, ...] = PATTERNS
) -> tuple[tuple[str, int], ...]:
    """Returns what a head may do but attend to everything: skip, or a pattern of so many blocks.

    Example:
        >>> candidates((8,))
        (('skip', 0), ('diagonal', 8), ('crossing', 8), ('stripe', 8))
    """
    return (("skip", 0), *((name, count) for count in counts for name in names))


def near(blocks: Blocks, count: int, across: bool = False) -> Bool[np.ndarray, "Q K"]:
    """Marks `count` blocks around each, fewer on one side at the ends of the sequence.

    Args:
        blocks: The blocks.
        count: Blocks of a row, in 1..`blocks.count`.
        across: Whether the sequence goes place by place, through all frames of each, instead of
            frame by frame: Sparse-vDiT's multi-diagonal pattern.
    """
    place = np.arange(blocks.count)
    if across:
        place = place.reshape(blocks.tiles[0], -1).T.ravel()
    first = np.clip(np.arange(blocks.count) - count // 2, 0, blocks.count - count)
    marked = np.zeros((blocks.count, blocks.count), bool)
    marked[place[:, None], place[first[:, None] + np.arange(count)]] = True
    return marked


@functools.lru_cache(maxsize=64)
def box(tiles: Sizes, most: int, frames: int) -> Sizes | None:
    """Returns the box most like the grid, of those with about as many tiles as there may be."""
    sides = [range(1, count + 1) for count in tiles]
    sides[0] = range(frames, frames + 1) if frames else sides[0]
    boxes: list[Any] = [one for one in itertools.product(*sides) if math.prod(one) <= most]
    largest = max(map(math.prod, boxes), default=0)

    def likeness(one: Sizes) -> tuple[float, int]:
        shares = [side / count for side, count in zip(one, tiles, strict=True)]
        return min(shares) / max(shares), math.prod(one)

    return max(
        (one for one in boxes if math.prod(one) >= 0.75 * largest), key=likeness, default=None
    )


def tiled(frames: int, count: int) -> Bool[np.ndarray, "F F"]:
    """Marks the frames that each attends to: itself and `count` references, which see all.

    Example:
        >>> float(1 - tiled(8, 1).mean())  # of frames; .644 of blocks of 128 where these have 3,600
        0.65625
    """
    references = np.zeros(frames, bool)
    references[np.arange(count) * frames // count] = True
    return np.eye(frames, dtype=bool) | references[:, None] | references[None]


def most_references(frames: int, density: float) -> int:
    """Returns the most reference frames whose tiles are no larger a share than the density.

    Raises:
        ConfigError: If there is none.
    """
    shares = [tiled(frames, count).mean() for count in range(1, frames + 1)]
    if shares[0] > density + 1e-9:
        raise ConfigError(
            f"attention tiles of density {density:g} over {frames} latent frames",
            f"one reference frame takes {shares[0]:.3g}",
            f"use a density of {shares[0]:.3g} or more, or a longer video",
        )
    return int(np.searchsorted(shares, density + 1e-9, side="right"))


def pattern(blocks: Blocks, name: str, count: int) -> Bool[np.ndarray, "Q K"]:
    """Returns a pattern of `count` blocks in a row, windows of no more.

    The columns of a stripe are spread evenly. Tiles of "references" have as many reference frames
    instead.

    Raises:
        ConfigError: If a window through all frames has so few blocks that there is none.
    """
    if name in WINDOWS:
        found = box(blocks.tiles, count, {"tube": blocks.tiles[0], "plane": 1}.get(name, 0))
        if found is None:
            what, why = f"a {name} of {count} blocks", f"there are {blocks.tiles[0]} frames"
            raise ConfigError(what, why, "use larger densities, or other patterns")
        return sliding_windows(blocks.tiles, found)
    if name == "references":
        return tiled(blocks.grid.frames, count)[np.ix_(blocks.frames, blocks.frames)]
    if name == "skip":
        return np.zeros((blocks.count, blocks.count), bool)
    if name == "stripe":
        columns = np.arange(count) * blocks.count // count
        return np.broadcast_to(np.isin(np.arange(blocks.count), columns), 2 * (blocks.count,))
    return near(blocks, count, across=name == "crossing")


@dataclasses.dataclass(frozen=True)
class PatternTable:
    """What a search found out of every head of a network, on one grid.

    Attributes:
        weights: Fingerprint of the weights.
        grid: Latent frames, rows and columns of the tokens.
        block: Tokens of a block.
        counts: Blocks in a row of a pattern, of every size that was tried.
        costs: What each of `candidates` costs, 1 is dense.
        errors: `[layers][heads][candidates]`, mean square of the change of the head's output, over
            that of the outputs of all heads of the layer.
        columns: `[layers][heads][largest count]`, blocks of keys by the attention that they
            receive, of which a stripe has the first.
        names: The patterns that were tried.
    """

    weights: str
    grid: tuple[int, int, int]
    block: int
    counts: tuple[int, ...]
    costs: tuple[float, ...]
    errors: Float[np.ndarray, "layers N candidates"]
    columns: Int[np.ndarray, "layers N M"]
    names: tuple[str, ...] = PATTERNS

    @property
    def tried(self) -> tuple[tuple[str, int], ...]:
        """What a head may do but attend to everything: a pattern, and a number of blocks."""
        return candidates(self.counts, self.names)

    @classmethod
    def read(cls, text: str) -> "PatternTable":
        """Reads a table from its JSON text, or from the file of that name.

        Raises:
            ConfigError: If there is no such file, or it is no table.
        """
        fix = "make one: jvdm attention --search sparse_vdit"
        try:
            found: Any = json.loads(text if text.startswith("{") else Path(text).read_text())
            found.setdefault("names", PATTERNS)  # tables of before there were others
            known: dict[str, Any] = {name: found[name] for name in FIELDS}
            known |= {name: tuple(known[name]) for name in ("grid", "counts", "costs", "names")}
            known["errors"] = np.asarray(known["errors"], np.float64)
            known["columns"] = np.asarray(known["columns"], np.int64)
        except (OSError, ValueError, TypeError, KeyError) as error:
            why = f"it cannot be read ({error!r:.120})"
            raise ConfigError(f"the table of patterns {text:.80}", why, fix) from error
        table = cls(**known)
        errors, columns = table.errors, table.columns
        fits = errors.ndim == columns.ndim == 3 and errors.shape[:2] == columns.shape[:2]
        tried = len(table.tried)
        if not fits or errors.shape[2] != tried or not np.isfinite(errors).all():
            why = f"errors are {errors.shape}, columns {columns.shape}, for {tried} patterns"
            raise ConfigError(f"the table of patterns {text:.80}", why, fix)
        return table

    def text(self) -> str:
        """Returns the table as JSON."""
        told = {name: getattr(self, name) for name in FIELDS}
        told["errors"] = [[[float(f"{x:.4g}") for x in n] for n in m] for m in self.errors]
        told["columns"] = self.columns.tolist()
        return json.dumps(told)

    def check(self, blocks: Blocks) -> None:
        """Raises `ConfigError` if the table was made on another grid or for other heads."""
        grid = blocks.grid
        mine = (*self.grid, self.errors.shape[1], self.block)
        theirs = (grid.frames, grid.height, grid.width, grid.heads, blocks.size)
        if mine != theirs or self.columns.max() >= blocks.count:
            names = "{0} x {1} x {2} tokens, {3} heads, blocks of {4}".format
            raise ConfigError(
                f"a table of patterns of {names(*mine)}",
                f"this run has {names(*theirs)}",
                "search again at this size: jvdm attention --search sparse_vdit",
            )

    def chosen(self, density: float, blocks: Blocks, first: int) -> Int[np.ndarray, "layers N"]:
        """Returns what every head does, an index of `candidates`, -1 for all blocks.

        That of least error plus weighted cost, all blocks (no error, cost 1) included; one weight
        for all heads, the lowest that keeps to the density.

        Args:
            density: Mean share of blocks over heads of the layers that count, at most.
            blocks: The blocks.
            first: The first layer that counts; those before it list all blocks.

        Raises:
            ConfigError: If all heads together cannot save so much.
        """
        shares = np.array([pattern(blocks, *one).mean() for one in self.tried] + [1.0])
        costs = np.array([*self.costs, 1.0])
        errors = np.pad(self.errors[first:], ((0, 0), (0, 0), (0, 1)))

        def taken(weight: float) -> Int[np.ndarray, "layers N"]:
            return (errors + weight * costs).argmin(-1)

        low, high = 1e-9, 1e9
        for _ in range(80):
            middle = float(np.sqrt(low * high))
            fits = shares[taken(middle)].mean() <= density + 1e-9
            low, high = (low, middle) if fits else (middle, high)
        mine = taken(high)
        if shares[mine].mean() > density + 1e-9:
            raise ConfigError(
                f"density {density:g} of this table of patterns",
                f"the least of its patterns come to {shares[mine].mean():.3g}",
                "use more, or search with smaller densities",
            )
        mine = np.where(mine == len(costs) - 1, -1, mine)
        return np.pad(mine, ((first, 0), (0, 0)), constant_values=-1)
