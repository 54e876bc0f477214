"""What a kernel computes at a time."""

import dataclasses
import math

LANES = 128
SUBLANES = 16  # rows of 16 bits that are stored together: a block begins with a new run

# From the static schedule (`python -m tests.pallas_kernels.schedule`): at D = 128 on v5e and v5p
# all passes keep the matrix unit busy for 80 % of the time or more.
QUERIES = 512
KEYS = 512
MOST_PARTS = 4
LEAST_FORWARD = 512
LEAST_BACKWARD = 256


@dataclasses.dataclass(frozen=True)
class Tiles:
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
    def of(
        cls,
        block_q: int,
        block_kv: int,
        listed: int,
        *,
        queries: int = QUERIES,
        keys: int = KEYS,
        least: int = 1,
    ) -> "Tiles":
        """Returns tiles for blocks of a size that `piece` can cut.

        Args:
            block_q: Queries of a block.
            block_kv: Keys of a block.
            listed: Keys for which a list has room: a step has no more.
            queries: Queries of a tile, at most.
            keys: Keys of a part, at most, but for a multiple of 128.
            least: Queries of a tile for which one part per step is enough, or fewer in total.
        """
        q, kv = piece(block_q, queries), piece(block_kv, keys)
        unit = LANES // math.gcd(kv, LANES)
        gather = unit * max(1, min(keys, listed) // (kv * unit))
        parts = max(1, min(least // q, MOST_PARTS, listed // (kv * gather)))
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
    """Returns the largest equal part of a block that has at most `most` tokens; 0 if none fits."""
    if block <= most:
        return block
    return next((n for n in range(most, 0, -LANES) if block % n == 0), 0)
