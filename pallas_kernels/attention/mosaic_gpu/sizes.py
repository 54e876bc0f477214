"""What can be chosen of the kernels for Hopper: entries of the tables of tiles."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from pallas_kernels.attention import tables

KERNEL = "mosaic_gpu"
SHARED_MEMORY = 232_448 - 1024  # bytes that a block of threads may have, less what barriers need
FREE_BARRIERS = 12  # of the hardware's 16, Mosaic keeps 4
ROWS = 64  # of scores, that a warpgroup computes with at once
WIDEST = 192  # queries of a tile of three warpgroups


class ForwardSizes(NamedTuple):
    """Tiles of the forward pass."""

    q: int
    """Queries of a tile: 128, at which both compute warpgroups work, 64, one for each, or 192
    for heads of 64, at which three work."""
    kv: int
    """Keys of a tile: 64 or 128."""
    k_stages: int
    """Tiles of keys in shared memory, for each tile of queries."""
    v_stages: int
    """The same of values."""

    @classmethod
    def of(cls, device: str, block_q: int, block_kv: int, size: int) -> "ForwardSizes":
        """Returns those of the tables, for blocks that are multiples of 64 and heads of a size."""
        blocks = f"{rows_of(block_q, size)}x{unit(block_kv)}x{size}"
        return cls(**tables.entry(KERNEL, device, "forward", blocks).sizes)

    @classmethod
    def possible(cls, block_q: int, block_kv: int, size: int) -> Iterator["ForwardSizes"]:
        """Yields all that divide blocks, of 64, 128 or 192, and for which there is memory."""
        widest = rows_of(block_q, size)
        tiles = itertools.product(
            [rows for rows in (64, 128, WIDEST) if widest % rows == 0], range(64, block_kv + 1, 64)
        )
        for (q, kv), k_stages, v_stages in itertools.product(tiles, (2, 3, 4), (2, 3, 4)):
            sizes, groups = cls(q, kv, k_stages, v_stages), max(128 // q, 1)
            rows = groups * (2 * q + (k_stages + v_stages) * kv)
            held = 2 * rows * size + 2 * groups * k_stages * kv + 512
            barriers = groups * (k_stages + v_stages + 1)
            if held <= SHARED_MEMORY and barriers <= FREE_BARRIERS and v_stages <= k_stages:
                yield sizes


class BackwardSizes(NamedTuple):
    """Tiles of the backward pass."""

    parts: int
    """Warpgroups that own one tile of keys, of 64 keys each: 1 or 2."""
    q_stages: int
    """Steps of queries in shared memory, for each tile of keys."""
    out_stages: int
    """The same of the gradients of values."""

    @classmethod
    def of(cls, device: str, block_kv: int, size: int) -> "BackwardSizes":
        """Returns those of the tables, for blocks of keys that are multiples of 64."""
        blocks = f"{unit(block_kv)}x{size}"
        return cls(**tables.entry(KERNEL, device, "backward", blocks).sizes)

    @classmethod
    def possible(cls, block_kv: int, size: int) -> Iterator["BackwardSizes"]:
        """Yields all that divide blocks of keys, of 64 or 128, and for which there is memory."""
        parts_of = range(1, block_kv // ROWS + 1)
        for parts, q_stages, out_stages in itertools.product(parts_of, (2, 3), (1, 2, 3)):
            groups = 2 // parts
            stages = groups * (q_stages + out_stages)
            slopes = groups * (q_stages if parts > 1 else 1) * parts
            held = 2 * ROWS * (size * (4 + stages) + ROWS * slopes) + 2 * 4 * ROWS * ROWS
            held += 10 * groups * q_stages * ROWS + 1024  # to the next whole KB
            if held <= SHARED_MEMORY and stages + 6 <= FREE_BARRIERS:
                yield cls(parts, q_stages, out_stages)


def mass_stages(device: str, size: int) -> int:
    """Returns how many tiles of keys are in shared memory for `block_mass`."""
    return tables.entry(KERNEL, device, "mass", str(size)).sizes["stages"]


def rows_of(block_q: int, size: int) -> int:
    """Returns the largest tile that divides blocks of queries: 64, 128, or 192 for heads of 64."""
    return WIDEST if size == 64 and block_q % WIDEST == 0 else unit(block_q)


def unit(block: int) -> int:
    """Returns the largest tile that divides blocks: 64 or 128."""
    return ROWS if block % (2 * ROWS) else 2 * ROWS
