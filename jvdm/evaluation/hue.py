"""The hue reader: which colours are where, by chromaticity alone; nothing is trained.

A clip is pooled to a grid of 64 cells in height, each cell is given the palette colour
whose hue is nearest, and every named colour is followed through the clip: how many
separate pieces it has, where they are, and what might hide them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Bool, Float, Frames, Int
from jvdm.evaluation.grid import closed, count_components, dilate, opened
from jvdm.world.palette import classify
from jvdm.world.scene import COLORS

GRID = 64
"""Cells from top to bottom; lengths and areas below are in cells."""

_SPECK = 1  # Slivers of at most 2 cells are no object.
# Red blurred over yellow is orange, up to 4 cells wide where an object falls fast.
_MIXTURE = 2
_OCCLUDER = 8  # A gap of up to 16 cells that another object fills does not split an object.
_LARGEST = 36  # cells; true objects, hidden in part or not, span at most 33
_DIRECTIONS = 32  # in which the convex hull of a mask is measured
_NEAR = 3  # Cells that an edge may move within one frame of a rolling object or a camera.


class Tracks(NamedTuple):
    """What the hue reader saw of each slot `K` (a named colour) in each frame.

    Attributes:
        pieces: Number of separate components; 0 is not visible.
        area: Cells.
        center: Row and column of the mean cell; 0 where not visible.
        extent: Height and width of the bounding box.
        convexity: Area over that of the convex hull. The silhouettes of all objects are
            convex: true ones have .88 or more.
        elongation: Ratio of the standard deviations of the mask along and across its
            main direction: 1 for a disc, 2 for two discs that touch.
        at_border: The mask comes within 3 cells of the edge of the frame.
        at_other: The mask comes within 3 cells of another coloured object.
        stray: Cells of colours that no slot names, after removal of specks.
    """

    pieces: Int[Array, "B T K"]
    area: Float[Array, "B T K"]
    center: Float[Array, "B T K 2"]
    extent: Float[Array, "B T K 2"]
    convexity: Float[Array, "B T K"]
    elongation: Float[Array, "B T K"]
    at_border: Bool[Array, "B T K"]
    at_other: Bool[Array, "B T K"]
    stray: Float[Array, "B T"]


def pool(frames: Frames, cells: int = GRID) -> Float[Array, "B T h w 3"]:
    """Averages frames to `cells` rows, columns in proportion."""
    batch, length, height, width, _ = frames.shape
    columns = max(1, round(cells * width / height))
    if height % cells == 0 and width % columns == 0:
        split = (batch, length, cells, height // cells, columns, width // columns, 3)
        return frames.reshape(split).mean((3, 5))
    return jax.image.resize(frames, (batch, length, cells, columns, 3), "linear")


def track(frames: Frames, colors: Int[Array, "B K"], active: Bool[Array, "B K"]) -> Tracks:
    """Follows the named colours through clips.

    A colour that another object hides in the middle is seen as two parts. They count
    as one piece if cells of other objects fill the gap, the gap is at most 16 of 64
    cells wide, and both together are not larger than any object is. Two small copies on
    both sides of a touching occluder are therefore taken for one. Parts smaller than
    3 x 3 cells are not seen.

    Args:
        frames: Clips, 0..1; at least 64 pixels high to be read well.
        colors: Indices of `COLORS`, different within a clip.
        active: Slots that count; the others are never visible.
    """
    label = classify(pool(jnp.clip(frames, 0.0, 1.0)))[:, :, None]
    wanted = jnp.where(active, colors, -2)[:, None, :, None, None]
    seen = label == wanted
    mask = opened(seen, _SPECK)
    coloured = jnp.broadcast_to(label >= 0, mask.shape)
    other = coloured & ~seen
    hidden = closed(mask, _OCCLUDER) & dilate(other, _SPECK)
    whole = closed(seen, _SPECK)
    rows, columns = mask.any(-1), mask.any(-2)
    extent = jnp.stack([_span(rows), _span(columns)], -1)
    plausible = (extent.max(-1) <= _LARGEST)[..., None, None]
    pieces = count_components(mask, whole | (hidden & plausible))
    solid = opened(whole, _SPECK)

    named = jax.nn.one_hot(wanted[:, 0, :, 0, 0], len(COLORS), dtype=bool).any(1)
    palette = jnp.arange(len(COLORS))[None, None, :, None, None]
    strays = opened((label == palette) & ~named[:, None, :, None, None], _MIXTURE)
    inner = mask[..., _NEAR:-_NEAR, _NEAR:-_NEAR]
    solid_other = opened(other, _SPECK)
    return Tracks(
        pieces=pieces,
        area=mask.sum((-2, -1)).astype(jnp.float32),
        center=jnp.stack([_mean_index(mask.sum(-1)), _mean_index(mask.sum(-2))], -1),
        extent=extent,
        elongation=_elongation(solid),
        convexity=solid.sum((-2, -1)) / jnp.maximum(_hull_area(solid), 1.0),
        at_border=mask.any((-2, -1)) & (inner.sum((-2, -1)) < mask.sum((-2, -1))),
        at_other=(dilate(mask, _NEAR) & solid_other).any((-2, -1)),
        stray=strays.sum((-3, -2, -1)).astype(jnp.float32),
    )


def _mean_index(weight: Int[Array, "... n"]) -> Float[Array, "..."]:
    """Mean position along the last axis; 0 where there is no weight."""
    index = jnp.arange(weight.shape[-1], dtype=jnp.float32)
    return weight.astype(jnp.float32) @ index / jnp.maximum(weight.sum(-1), 1)


def _span(occupied: Bool[Array, "... n"]) -> Float[Array, "..."]:
    """Distance from the first to the last occupied index, both included; 0 if none."""
    index = jnp.broadcast_to(jnp.arange(occupied.shape[-1]), occupied.shape)
    last = jnp.where(occupied, index, -1).max(-1)
    first = jnp.where(occupied, index, occupied.shape[-1]).min(-1)
    return jnp.maximum(last - first + 1, 0).astype(jnp.float32)


def _hull_area(mask: Bool[Array, "... h w"]) -> Float[Array, "..."]:
    """Area of the polygon of tangents to a mask in equally spaced directions.

    With `h` the largest extent in each direction and `d` the angle between directions,
    the edges are `(h[i-1] - 2 h[i] cos d + h[i+1]) / sin d` and half their product with
    `h` is the area.
    """
    height, width = mask.shape[-2:]
    first = jnp.argmax(mask, -1)
    last = width - jnp.argmax(mask[..., ::-1], -1)
    row = jnp.broadcast_to(jnp.arange(height) + 0.5, first.shape)
    angles = 2 * np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS
    reach = []
    for cos, sin in zip(np.cos(angles), np.sin(angles), strict=True):
        corner = sin * row + 0.5 * abs(sin) + jnp.maximum(cos * first, cos * last)
        reach.append(jnp.where(mask.any(-1), corner, -jnp.inf).max(-1))
    reach = jnp.stack(reach, -1)
    step = 2 * np.pi / _DIRECTIONS
    around = jnp.roll(reach, 1, -1) + jnp.roll(reach, -1, -1)
    edges = (around - 2 * np.cos(step) * reach) / np.sin(step)
    return jnp.where(mask.any((-2, -1)), 0.5 * (reach * edges).sum(-1), 0.0)


def _elongation(mask: Bool[Array, "... h w"]) -> Float[Array, "..."]:
    """Root of the ratio of the eigenvalues of the covariance of a mask's cells."""
    weight = mask.astype(jnp.float32)
    height, width = mask.shape[-2:]
    row = jnp.arange(height, dtype=jnp.float32) - height / 2
    column = jnp.arange(width, dtype=jnp.float32) - width / 2
    rows, columns = weight.sum(-1), weight.sum(-2)
    total = jnp.maximum(rows.sum(-1), 1.0)
    y, x = rows @ row / total, columns @ column / total
    # A cell has a variance of its own: 1 / 12 in each direction.
    var_y = rows @ row**2 / total - y**2 + 1 / 12
    var_x = columns @ column**2 / total - x**2 + 1 / 12
    cross = (weight @ column) @ row / total - x * y
    middle, spread = (var_x + var_y) / 2, jnp.hypot((var_x - var_y) / 2, cross)
    return jnp.sqrt((middle + spread) / jnp.maximum(middle - spread, 1 / 12))
