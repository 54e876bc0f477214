"""Blocks that do not fill tiles: a tile is computed where a cell of it is listed, and masked.

The tensor cores of Hopper multiply 64 rows at once. Smaller blocks are therefore cells of tiles,
and the tiles that have a listed cell are those that are computed; larger blocks whose borders lie
within tiles are cut into cells. Which pairs of a tile count is in a word of bits for each cell of
its rows.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from pallas_kernels.attention.mosaic_gpu.sizes import ROWS
from pallas_kernels.block_mask import BlockMask

TILE = 128  # queries and keys of the tiles that cells lie in
LEAST = TILE // 32  # queries and keys of a cell: a tile has 32 words of as many bits
MOST = 2**30  # cells of all heads: bytes of their map


@dataclasses.dataclass(frozen=True)
class Cells:
    """The cells of a mask.

    Attributes:
        listed: bool[b, n, kinds, Q, K], cells that are listed: in full, and, where places decide
            over others, in part.
        size: Queries and keys of a cell.
        lengths: Queries and keys of the sequences.
        counted: bool[b, L], keys of listed cells that count; None is all up to the end.
    """

    listed: Bool[Array, "b n kinds Q K"]
    size: tuple[int, int]
    lengths: tuple[int, int]
    counted: Bool[Array, "c L"] | None

    @classmethod
    def of(cls, mask: BlockMask) -> "Cells":
        """Returns the cells of the blocks of a mask."""
        size = cell(mask.block_q), cell(mask.block_kv)
        kinds = [mask.to_dense()]
        full_counts = mask.kv_full_counts
        if mask.by_place and full_counts is not None:
            entry = jnp.arange(mask.kv_indices.shape[3])[None, None, None]
            partial = mask.marked(entry >= full_counts[..., None])
            kinds = [kinds[0] & ~partial, partial]
        listed = jnp.stack(kinds, 2)
        for axis, block, part in ((3, mask.block_q, size[0]), (4, mask.block_kv, size[1])):
            listed = jnp.repeat(listed, block // part, axis)
        counted = None if mask.kv_lengths is None else mask.kv_counted
        return cls(listed, size, (mask.q_len, mask.kv_len), counted)

    def transpose(self) -> "Cells":
        """Returns the cells with queries and keys exchanged."""
        (high, wide), (q_len, kv_len) = self.size, self.lengths
        turned = self.listed.swapaxes(3, 4)
        return Cells(turned, (wide, high), (kv_len, q_len), self.counted)

    def lists(self, mask: BlockMask) -> BlockMask:
        """Returns the lists of tiles; one with cells in full and in part is listed twice.

        Args:
            mask: Of these cells, for what its pairs are masked by besides.
        """
        tiles = self._tiles((TILE, TILE)).any((4, 6))
        kinds, wide = tiles.shape[2], tiles.shape[4]
        found = BlockMask.from_dense(
            jnp.moveaxis(tiles, 2, 3).reshape(*tiles.shape[:2], -1, kinds * wide),
            block_q=TILE,
            block_kv=TILE,
            q_len=self.lengths[0],
            kv_len=kinds * wide * TILE,
        )
        return dataclasses.replace(
            found,
            kv_indices=found.kv_indices % wide,
            kv_full_counts=jnp.sum(tiles[:, :, 0], 3, dtype=jnp.int32) if kinds > 1 else None,
            q_coords=mask.q_coords,
            kv_coords=mask.kv_coords,
            causal_time=mask.causal_time,
            kv_len=self.lengths[1],
        )

    def words(self, columns: int) -> Int[Array, "b n R C 32"]:
        """Returns for tiles of `TILE` rows and so many columns which cells are listed.

        `C` counts the tiles of columns for cells in full, then those for cells in part. Bit `i` of
        a word is the `i`-th cell of the columns; a word is for `LEAST` rows, so that those of a
        tile are 128 bytes, as copies want them.
        """
        tiles = self._tiles((TILE, columns))
        bits = jnp.left_shift(jnp.uint32(1), np.arange(tiles.shape[6], dtype=np.uint32))
        words = jnp.sum(jnp.where(tiles, bits.reshape(1, 1, 1, 1, 1, 1, -1), 0), 6, jnp.uint32)
        words = jnp.repeat(words.astype(jnp.int32), self.size[0] // LEAST, 4)
        words = words.transpose(0, 1, 3, 2, 5, 4)
        return words.reshape(*words.shape[:3], -1, TILE // LEAST)

    def _tiles(self, size: tuple[int, int]) -> Bool[Array, "b n kinds R i C j"]:
        """Returns the cells of whole tiles of a size, up to the ends of tiles of `TILE`."""
        listed, shape = self.listed, []
        for axis, (length, part, tile) in enumerate(
            zip(self.lengths, self.size, size, strict=True), 3
        ):
            count = -(-length // TILE) * TILE // part
            pad = [(0, 0)] * 5
            pad[axis] = (0, max(count - listed.shape[axis], 0))
            listed = jax.lax.slice_in_dim(jnp.pad(listed, pad), 0, count, axis=axis)
            shape += [count * part // tile, tile // part]
        return listed.reshape(*listed.shape[:3], *shape)


def in_tiles(mask: BlockMask) -> tuple[BlockMask, Cells | None]:
    """Returns a mask whose blocks tiles divide, and which of their cells are listed."""
    if fits(mask):
        return mask, None
    cells = Cells.of(mask)
    return cells.lists(mask), cells


def fits(mask: BlockMask) -> bool:
    """Whether tiles divide the blocks of a mask."""
    return mask.block_q % ROWS == 0 and mask.block_kv % ROWS == 0


def cell(block: int) -> int:
    """Returns how many tokens of a block lie in one tile, wherever it begins."""
    return math.gcd(block, ROWS)


def refusal(mask: BlockMask) -> str:
    """Returns why tiles cannot serve the blocks of a mask; empty if they can."""
    if fits(mask):
        return ""
    blocks = f"blocks of {mask.block_q} queries and {mask.block_kv} keys"
    size = cell(mask.block_q), cell(mask.block_kv)
    if min(size) < LEAST:
        return f"{blocks} are not multiples of {LEAST}"
    heads = math.prod(mask.kv_counts.shape[:2])
    count = heads * -(-mask.q_len // size[0]) * -(-mask.kv_len // size[1])
    if count > MOST:
        return (
            f"{blocks} are {count:.2g} cells of {size[0]} x {size[1]} for {heads} heads, more "
            f"than {MOST:.2g}; larger blocks have fewer"
        )
    return ""


def served(mask: BlockMask) -> str:
    """Says how blocks are served that tiles do not divide; empty if they do."""
    if fits(mask):
        return ""
    size = f"{cell(mask.block_q)} x {cell(mask.block_kv)}"
    return (
        f"blocks of {mask.block_q} queries and {mask.block_kv} keys are cells of {size} in tiles "
        f"of {TILE} x {TILE}, which are computed where a cell is listed"
    )
