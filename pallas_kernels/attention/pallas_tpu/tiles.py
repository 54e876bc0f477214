"""What a kernel computes at a time."""

import dataclasses
import math

LANES = 128


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How rows and columns of the scores are cut: queries and keys, or the other way round."""

    q: int
    """Queries of a tile, which share a list."""
    kv: int
    """Keys of a piece, which lie side by side in memory."""
    gather: int
    """Pieces of a step; together a multiple of 128 keys."""
    q_split: int = 1
    """Tiles in a block of queries."""
    kv_split: int = 1
    """Pieces in a block of keys."""
    resident: bool = False
    """Whether all keys and values of a head lie in vector memory, or are fetched for each step."""

    @classmethod
    def of(cls, block_q: int, block_kv: int, most_q: int, keys: int, resident: bool) -> "Tiles":
        """Returns tiles for blocks of a size that has a `piece`.

        Args:
            block_q: Queries of a block.
            block_kv: Keys of a block.
            most_q: Queries of a tile, at most.
            keys: Keys of a step, at least, unless it would be cut for it.
            resident: Whether keys and values stay in vector memory.
        """
        q, kv = piece(block_q, most_q), piece(block_kv, keys)
        unit = LANES // math.gcd(kv, LANES)
        gather = unit * max(1, keys // (kv * unit))
        return cls(q, kv, gather, block_q // q, block_kv // kv, resident)

    @property
    def keys(self) -> int:
        """Keys of a step."""
        return self.kv * self.gather


def piece(block: int, most: int) -> int:
    """Returns the largest equal part of a block that has at most `most` tokens; 0 if none fits."""
    if block <= most:
        return block
    return next((n for n in range(most, 0, -LANES) if block % n == 0), 0)
