"""What a kernel computes at a time."""

import math
from typing import NamedTuple

from pallas_kernels.attention import tables

KERNEL = "pallas_tpu"
LANES = 128
SUBLANES = 16  # rows of 16 bits that are stored together: a block begins with a new run
WHOLE = 512  # tokens of a block that need not be cut: it may be no multiple of 128


class Limits(NamedTuple):
    """What a step computes at most: an entry of the tables, for a pass and a block of its rows."""

    queries: int
    """Queries of a tile; a multiple of 128, and so are `keys`."""
    keys: int
    """Keys of a part of a step."""
    parts: int
    """Parts of a step."""

    @classmethod
    def of(cls, chip: str, part: str, block: int) -> "Limits":
        """Returns those of the tables, for a pass and a block of the rows of its scores."""
        return cls(**tables.entry(KERNEL, chip, part, str(block)).sizes)


class Tiles(NamedTuple):
    """How rows and columns of the scores are cut: queries and keys, or the other way round."""

    q: int
    """Queries of a tile, which share a list."""
    kv: int
    """Keys of a piece, which lie side by side in memory."""
    gather: int
    """Pieces that are computed with at once; together a multiple of 128 keys."""
    parts: int = 1
    """How often in a step, in one run of instructions: products of a part overlap the softmax of
    the one before."""
    q_split: int = 1
    """Tiles in a block of queries."""
    kv_split: int = 1
    """Pieces in a block of keys."""
    resident: bool = False
    """Whether all keys and values of a head lie in vector memory, or are fetched for each step."""

    @classmethod
    def of(cls, block_q: int, block_kv: int, listed: int, limits: Limits) -> "Tiles":
        """Returns tiles for blocks of a size that `piece` can cut.

        Args:
            block_q: Queries of a block.
            block_kv: Keys of a block.
            listed: Keys for which a list has room: a step has no more.
            limits: What a step has at most, but that keys are a multiple of 128.
        """
        q, kv = piece(block_q, limits.queries), piece(block_kv, limits.keys)
        unit = LANES // math.gcd(kv, LANES)
        gather = unit * max(1, min(limits.keys, listed) // (kv * unit))
        parts = max(1, min(limits.parts, listed // (kv * gather)))
        return cls(q, kv, gather, parts, block_q // q, block_kv // kv)

    @property
    def keys(self) -> int:
        """Keys of a part of a step."""
        return self.kv * self.gather

    @property
    def pieces(self) -> int:
        """Pieces of a step."""
        return self.gather * self.parts


def piece(block: int, most: int) -> int:
    """Returns the largest equal part of a block that has at most `most` tokens.

    A block without one stays whole if it has few tokens; 0 if it has many.
    """
    if block <= most:
        return block
    parts = (n for n in range(most, 0, -LANES) if block % n == 0)
    return next(parts, block if block <= WHOLE else 0)
