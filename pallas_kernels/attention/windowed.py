"""Attention within windows of a grid of tokens, of any size, with text that all see."""

import functools
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pallas_kernels.attention.api import SparseImplementation, block_sparse_attention
from pallas_kernels.block_mask import TIME_BITS, BlockMask
from pallas_kernels.tile_order import TileOrder
from pallas_kernels.windows import Sizes, sliding_windows


class How(TypedDict, total=False):
    """How `block_sparse_attention` is called."""

    scale: float | None
    return_lse: bool
    implementation: SparseImplementation | None


def windowed_attention(
    q: Float[Array, "B L N D"],
    k: Float[Array, "B L H D"],
    v: Float[Array, "B L H D"],
    grid: Sizes,
    window: Sizes,
    tile: Sizes,
    causal_time: bool = False,
    text_len: int = 0,
    **how: Unpack[How],
) -> Any:
    """Computes attention of every token to the tiles around its own (arXiv:2502.04507).

    The sequence is the grid in raster order, then the text. It is put in the order of tiles,
    so that a window is a list of whole blocks, and the result back; at a border the window
    is moved inwards.

    Args:
        q: Queries; `L` is the size of the grid plus `text_len`.
        k: Keys; `H` divides `N`.
        v: Values.
        grid: Tokens along time, rows and columns; need not be multiples of the tile.
        window: Tokens of the window along each, multiples of the tile, or the grid's side or
            more, which is all.
        tile: Tokens of a tile along each. Kernels like 64 or 128 in all.
        causal_time: Whether a token sees no later time than its own.
        text_len: Tokens at the end that see everything, and that all see.
        **how: `scale`, `return_lse` and `implementation` of `block_sparse_attention`.

    Returns:
        As `block_sparse_attention`, in the order of the input.

    Raises:
        ValueError: If the sizes do not fit one another.
    """
    order = TileOrder(grid, tile)
    if q.shape[1] != order.tokens + text_len or k.shape[1] != q.shape[1]:
        raise ValueError(
            f"{q.shape[1]} queries and {k.shape[1]} keys, but a grid of {grid} and {text_len} "
            f"tokens of text are {order.tokens + text_len}"
        )
    mask = _mask(order, _in_tiles(window, order), causal_time, text_len)
    short = [(0, 0), (0, mask.q_len - order.num_slots - text_len), (0, 0), (0, 0)]

    def turned(x: Array) -> Array:
        parts = (order.apply(x[:, : order.tokens]), x[:, order.tokens :])
        return jnp.pad(jnp.concatenate(parts, 1), short)

    def back(x: Array, axis: int) -> Array:
        video, rest = jnp.split(x, [order.num_slots], axis)
        text = jax.lax.slice_in_dim(rest, 0, text_len, axis=axis)
        return jnp.concatenate([order.undo(video, axis), text], axis)

    found = block_sparse_attention(turned(q), turned(k), turned(v), mask, **how)
    if how.get("return_lse"):
        return back(found[0], 1), back(found[1], 2)
    return back(found, 1)


def _in_tiles(window: Sizes, order: TileOrder) -> Sizes:
    """Returns the tiles of a window along each axis."""
    found = []
    for name, size, part, count in zip(
        ("time", "rows", "columns"), window, order.tile, order.tiles, strict=True
    ):
        if size < 1 or (size % part and size < part * count):
            raise ValueError(
                f"a window of {size} tokens along {name} with tiles of {part}: it must be a "
                "multiple of the tile, or as large as the grid"
            )
        found.append(min(-(-size // part), count))
    return (found[0], found[1], found[2])


@functools.lru_cache(maxsize=32)
def _lists(
    order: TileOrder, window: Sizes, causal_time: bool, text_blocks: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the maps of blocks that are seen, and of those that are seen in part."""
    seen = sliding_windows(order.tiles, window)
    partial = np.zeros_like(seen)
    if causal_time:
        when = np.arange(len(seen)) // (order.tiles[1] * order.tiles[2])
        seen = seen & (when[:, None] >= when[None])
        partial = seen & (when[:, None] == when[None]) & (order.tile[0] > 1)
    edges = [(0, text_blocks)] * 2
    return np.pad(seen, edges, constant_values=True), np.pad(partial, edges)


def _mask(order: TileOrder, window: Sizes, causal_time: bool, text_len: int) -> BlockMask:
    """Returns the lists of a window; padding and what fills up blocks are no keys."""
    text = np.full(-(-text_len // order.block), order.block)
    if text_len:
        text[-1] = text_len - order.block * (len(text) - 1)
    seen, partial = _lists(order, window, causal_time, len(text))
    slots = order.num_slots + order.block * len(text)
    fields: dict[str, Any] = {"q_len": slots, "kv_len": slots, "causal_time": causal_time}
    fields |= {"block_q": order.block, "block_kv": order.block}
    with jax.ensure_compile_time_eval():  # lists that are known here are constants
        if order.is_padded or text_len % order.block:
            lengths = np.concatenate([order.lengths, text])
            fields["kv_lengths"] = jnp.asarray(lengths[None], jnp.int32)
        width = int(seen.sum(1).max())
        if not partial.any():
            return BlockMask.from_dense(seen[None, None], max_blocks=width, **fields)
        time = order.slots // (order.grid[1] * order.grid[2])
        coords = np.where(order.holds, time << TIME_BITS, -1)
        coords = np.concatenate([coords, np.zeros(slots - order.num_slots, coords.dtype)])
        fields |= dict.fromkeys(("q_coords", "kv_coords"), jnp.asarray(coords[None], jnp.int32))
        maps = (seen[None, None], partial[None, None])
        return BlockMask.from_dense(*maps, max_blocks=width, **fields)
