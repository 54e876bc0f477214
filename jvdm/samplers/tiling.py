"""Tiles: a network sees parts of the latents, and what it says of them is fused.

A clip that is longer or larger than what a network was trained on is covered by overlapping tiles,
each evaluated as a clip of its own; where tiles overlap their clean data and noise are averaged.
Weights are data and sum to 1 in every place, so that a network that treats all places alike says
what it would have said of the whole.

Reference: MultiDiffusion, Bar-Tal et al., arXiv:2302.08113; over frames with ramps: FreeNoise,
arXiv:2310.15169 (on attention there) and DiTCtrl, arXiv:2412.18597; blocks with context: DualParal,
arXiv:2505.21070, and FIFO-Diffusion, arXiv:2405.11473.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float, Int, PyTree
from jvdm.errors import ConfigError
from jvdm.samplers.denoiser import Call, Denoised, Denoiser

Weights = Literal["triangle", "linear", "hann", "flat", "middle", "later"]
"""How tiles share a place: `triangle` less towards their ends, `linear` where they share alone,
`hann` by a raised cosine, `flat` equally; `middle` leaves it to the tile that has it nearest to its
middle, so that the ends of a tile are context alone, `later` to the one that has most before it:
with an overlap of half a tile, FIFO-Diffusion's lookahead."""


class Place(NamedTuple):
    """Where a tile is: its first latent frame in the window of the call, and its first cell."""

    frame: Int[Array, ""]
    row: Int[Array, ""]
    column: Int[Array, ""]


@dataclass(frozen=True)
class Tiles:
    """Sizes of the tiles in latent frames and cells; None does not divide.

    Attributes:
        frames: Latent frames of a tile: what the network was trained on.
        overlap: Latent frames that neighbours share; the last tile may share more.
        height: Latent rows of a tile.
        width: Latent columns of a tile.
        side_overlap: Rows and columns that neighbours share.
        weights: How tiles share a place.
        pairs: Whether tiles of frames go in pairs: what layers remember is handed from each to the
            next, and a tile between two others is evaluated beside both, once as the second of a
            pair and once as the first, of which the mean is taken (DiTCtrl).
        fused_above: Noise level above which tiles share the places of a frame; up to it a place is
            left to the tile that has it nearest to its middle (Video Interface Networks,
            arXiv:2503.17539, mix while frames are noisy). At 0 they always share.

    Raises:
        ConfigError: If a tile is empty, neighbours share a whole one, pairs are no frames alone, or
            the level is outside 0..1.
    """

    frames: int | None = None
    overlap: int = 0
    height: int | None = None
    width: int | None = None
    side_overlap: int = 0
    weights: Weights = "triangle"
    pairs: bool = False
    fused_above: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.fused_above <= 1:
            what = f"tiles are fused above the level {self.fused_above:g}"
            raise ConfigError(what, "levels go from 0, clean, to 1, noise", "use 0 to 1")
        if self.pairs and (self.height or self.width or not self.frames):
            what = f"tiles of {self.frames} frames, {self.height} x {self.width} cells, in pairs"
            why = "a tile is handed what the one before it in time remembers"
            raise ConfigError(what, why, "say frames alone, no height and width")
        sides = {"frames": self.overlap, "height": self.side_overlap, "width": self.side_overlap}
        for name, shared in sides.items():
            size = getattr(self, name)
            if size is not None and not 0 <= shared < size:
                raise ConfigError(
                    f"tiles of {name} {size} that share {shared}",
                    "neighbours share less than a tile, and none is empty",
                    f"use an overlap of 0 to {max(size - 1, 0)}, or larger tiles",
                )

    def size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Returns the sizes of a tile of latents of these sizes: what the network sees."""
        whole = (frames, height, width)
        wanted = (self.frames, self.height, self.width)
        return tuple(min(mine or size, size) for mine, size in zip(wanted, whole, strict=True))  # pyright: ignore[reportReturnType]

    def places(self, frames: int, height: int, width: int) -> Int[np.ndarray, "tiles 3"]:
        """Returns the first frame, row and column of every tile."""
        grids = np.meshgrid(*self._starts((frames, height, width)), indexing="ij")
        places = np.stack([grid.ravel() for grid in grids], axis=-1).astype(np.int32)
        return np.repeat(places, self._times(len(places)), axis=0)

    def shares(
        self, frames: int, height: int, width: int
    ) -> Float[np.ndarray, "tiles frames rows columns"]:
        """Returns the weight of every tile in each of its places; they sum to 1 over the tiles."""
        whole, size = (frames, height, width), self.size(frames, height, width)
        axes = [
            _axis_shares(starts, length, count, self.weights, common)
            for starts, length, count, common in zip(
                self._starts(whole), size, whole, self._shared, strict=True
            )
        ]
        shares = np.einsum("af,bh,cw->abcfhw", *axes).reshape(-1, *size)
        times = self._times(len(shares))
        shares = shares / times[:, None, None, None]
        return np.repeat(shares, times, axis=0).astype(np.float32)

    def owned(
        self, frames: int, height: int, width: int
    ) -> Float[np.ndarray, "tiles frames rows columns"]:
        """Returns the weights with which every place is left to one tile."""
        return replace(self, weights="middle").shares(frames, height, width)

    def at_level(self, t: Array, shared: Array, owned: Array) -> Array:
        """Returns the weights of frames at the levels `t`: shared ones while they are noisy."""
        return jnp.where(t > self.fused_above, shared, owned)

    def _times(self, count: int) -> np.ndarray:
        """Returns how often each of so many tiles is evaluated."""
        times = np.ones(count, int)
        times[1:-1] += self.pairs
        return times

    def _starts(self, whole: Sequence[int]) -> list[np.ndarray]:
        size = self.size(*whole)
        return [
            np.append(np.arange(0, count - length, max(length - common, 1)), count - length)
            for count, length, common in zip(whole, size, self._shared, strict=True)
        ]

    @property
    def _shared(self) -> tuple[int, int, int]:
        return self.overlap, self.side_overlap, self.side_overlap


def _axis_shares(
    starts: np.ndarray, length: int, count: int, weights: Weights, common: int
) -> Float[np.ndarray, "tiles length"]:
    """Returns the weights along one axis."""
    inside = np.arange(length)
    triangle = np.minimum(inside + 1.0, length - inside)
    own = {
        "flat": np.ones(length),
        "later": inside + 1.0,
        "linear": np.minimum(triangle, common + 1.0),
        "hann": np.sin(np.pi * (inside + 1.0) / (length + 1.0)) ** 2,
    }.get(weights, triangle)
    dense = np.zeros((len(starts), count))
    for tile, start in enumerate(starts):
        dense[tile, start : start + length] = own
    if weights in ("middle", "later"):
        dense = (np.arange(len(starts))[:, None] == dense.argmax(axis=0)).astype(float)
    dense /= dense.sum(axis=0)
    return np.stack([dense[tile, start : start + length] for tile, start in enumerate(starts)])


def cut(values: Array, place: Place, size: Sequence[int]) -> Array:
    """Returns the part `[B, *size, ...]` of latents `[B, F, H, W, ...]` that a tile sees."""
    for axis, (start, length) in enumerate(zip(place, size, strict=True), 1):
        values = jax.lax.dynamic_slice_in_dim(values, start, length, axis)
    return values


def fused(tiles: Tiles, denoiser_of: Callable[[Place], Denoiser]) -> Denoiser:
    """Returns the denoiser that fuses what another says of tiles; its first carry is `fused_carry`.

    The tiles are evaluated one after the other, so that a call needs the memory of one. A network
    is told the levels and the first frame of its tile. A window of one tile is an ordinary call.

    Args:
        tiles: The tiles; latents are `[B, F, H, W, C]`.
        denoiser_of: Returns the denoiser of the tile at a place, which may be traced.
    """

    def fuse(x: Array, call: Call, carry: PyTree) -> tuple[Denoised, PyTree]:
        whole = (x.shape[1], x.shape[2], x.shape[3])
        places, size = tiles.places(*whole), tiles.size(*whole)
        if len(places) == 1:
            return denoiser_of(Place(*jnp.asarray(places[0])))(x, call, carry)

        def add(
            sums: Denoised, tile: tuple[Array, Array, Array | None, PyTree]
        ) -> tuple[Denoised, PyTree]:
            corner, share, own, carry = tile
            place = Place(*corner)
            told = _within(call, place, size)
            said, carry = denoiser_of(place)(cut(x, place, size), told, carry)
            weight = share[None, ..., None]
            if own is not None:
                t = told.t[:, :, None, None, None]
                weight = tiles.at_level(t, weight, own[None, ..., None])
            return Denoised(
                *(_add(whole, weight * part, place) for whole, part in zip(sums, said, strict=True))
            ), carry

        nothing = Denoised(jnp.zeros_like(x), jnp.zeros_like(x))
        owned = tiles.owned(*whole) if tiles.fused_above else None
        each = jax.tree.map(jnp.asarray, (places, tiles.shares(*whole), owned))
        if not tiles.pairs:
            return jax.lax.scan(add, nothing, (*each, carry))

        def hand_on(
            made: tuple[Denoised, PyTree], tile: tuple[Array, Array, Array | None]
        ) -> tuple[tuple[Denoised, PyTree], None]:
            return add(made[0], (*tile, made[1])), None

        return jax.lax.scan(hand_on, (nothing, carry), each)[0]

    return fuse


def _within(call: Call, place: Place, size: Sequence[int]) -> Call:
    """Returns the call as the frames of a tile see it."""
    t, t_next, write = (
        jax.lax.dynamic_slice_in_dim(values, place.frame, size[0], axis=-1)
        for values in (call.t, call.t_next, call.row.write)
    )
    start, frame = (first + place.frame for first in (call.row.start, call.row.frame))
    row = call.row._replace(start=start, frame=frame, write=write)
    for name in ("moving", "level"):
        values = getattr(row, name)
        if values is not None:
            values = jax.lax.dynamic_slice_in_dim(values, place.frame, size[0])
            row = row._replace(**{name: values})
    return Call(t, t_next, row)


def _add(whole: Array, part: Array, place: Place) -> Array:
    """Adds a part to the place that it was cut from."""
    zero = jnp.zeros_like(place.frame)
    start = (zero, *place, zero)
    old = jax.lax.dynamic_slice(whole, start, part.shape)
    return jax.lax.dynamic_update_slice(whole, old + part, start)


def fused_carry(tiles: Tiles, carry: PyTree, frames: int, height: int, width: int) -> PyTree:
    """Returns the first carry of `fused`: a copy for every tile, on a leading axis, or one alone
    where it is handed on.

    Args:
        tiles: The tiles.
        carry: The first carry of a tile.
        frames: Latent frames of the window.
        height: Latent rows.
        width: Latent columns.
    """
    count = len(tiles.places(frames, height, width))
    one = count == 1 or tiles.pairs
    return carry if one else jax.tree.map(lambda leaf: jnp.stack([leaf] * count), carry)
