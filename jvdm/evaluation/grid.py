"""Morphology and connected components of boolean masks, on the accelerator.

Masks are `[..., h, w]`, a few thousand cells each. Everything is built from
shifted copies, so that XLA fuses it and no gather or scatter is needed.
"""

import jax.numpy as jnp
from jax import lax

from jvdm.arrays import Array, Bool, Int

MAX_SWEEPS = 128
"""Bound on label propagation: a component whose shortest inner path between two
cells is longer than this many cells is counted more than once."""


def _window(mask: Array, reach: int, axis: int, *, grow: bool) -> Array:
    """Any (`grow`) or all cells within `reach` along `axis`, by doubling windows."""
    size = mask.shape[axis]
    pad = [(0, 0)] * mask.ndim
    pad[axis] = (reach, reach)
    wide = jnp.pad(mask, pad, constant_values=not grow)
    combine = jnp.logical_or if grow else jnp.logical_and
    covered = 1
    while covered < 2 * reach + 1:
        shift = min(covered, 2 * reach + 1 - covered)
        length = wide.shape[axis] - shift
        wide = combine(
            lax.slice_in_dim(wide, 0, length, axis=axis),
            lax.slice_in_dim(wide, shift, shift + length, axis=axis),
        )
        covered += shift
    assert wide.shape[axis] == size
    return wide


def dilate(mask: Bool[Array, "... h w"], reach: int) -> Bool[Array, "... h w"]:
    """Grows a mask by a square of `2 * reach + 1` cells."""
    axis = mask.ndim - 1
    return _window(_window(mask, reach, axis, grow=True), reach, axis - 1, grow=True)


def erode(mask: Bool[Array, "... h w"], reach: int) -> Bool[Array, "... h w"]:
    """Shrinks a mask by a square; what lies outside the frame counts as inside the mask."""
    axis = mask.ndim - 1
    return _window(_window(mask, reach, axis, grow=False), reach, axis - 1, grow=False)


def opened(mask: Bool[Array, "... h w"], reach: int) -> Bool[Array, "... h w"]:
    """Removes parts thinner than `2 * reach + 1` cells and keeps the rest as it is."""
    return dilate(erode(mask, reach), reach)


def closed(mask: Bool[Array, "... h w"], reach: int) -> Bool[Array, "... h w"]:
    """Fills gaps of up to `2 * reach` cells."""
    pad = [(0, 0)] * (mask.ndim - 2) + [(reach, reach)] * 2
    filled = erode(dilate(jnp.pad(mask, pad), reach), reach)
    return filled[..., reach:-reach, reach:-reach]


def _neighbour_max(labels: Array) -> Array:
    """The largest label in the 3 x 3 neighbourhood of every cell."""
    for axis in (labels.ndim - 1, labels.ndim - 2):
        pad = [(0, 0)] * labels.ndim
        pad[axis] = (1, 1)
        wide = jnp.pad(labels, pad)
        size = labels.shape[axis]
        parts = [lax.slice_in_dim(wide, start, start + size, axis=axis) for start in range(3)]
        labels = jnp.maximum(jnp.maximum(parts[0], parts[1]), parts[2])
    return labels


def count_components(
    mask: Bool[Array, "... h w"], through: Bool[Array, "... h w"] | None = None
) -> Int[Array, "..."]:
    """Counts 8-connected components by propagating the largest cell number.

    Args:
        mask: Cells to be counted.
        through: Further cells that connect components but do not form any.

    Returns:
        Number of components of every mask. Propagation stops when no label
        changes any more, at the latest after `MAX_SWEEPS` cells.
    """
    height, width = mask.shape[-2:]
    dtype = jnp.int16 if height * width < 2**15 else jnp.int32
    numbers = jnp.arange(1, height * width + 1, dtype=dtype).reshape(height, width)
    numbers = jnp.broadcast_to(numbers, mask.shape)
    own = jnp.where(mask, numbers, 0)
    allowed = mask if through is None else mask | through

    def sweep(state):
        step, labels, _ = state
        spread = jnp.where(allowed, _neighbour_max(labels), 0)
        return step + 1, spread, jnp.any(spread != labels)

    def unfinished(state):
        return state[2] & (state[0] < MAX_SWEEPS)

    _, labels, _ = lax.while_loop(unfinished, sweep, (0, own, jnp.array(True)))
    return jnp.sum(mask & (labels == own), axis=(-2, -1), dtype=jnp.int32)
