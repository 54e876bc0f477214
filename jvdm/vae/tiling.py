"""Coding videos of any size and length in bounded memory: at once, or windows and chunks of them.

`encode` and `decode` code a video of up to `WHOLE_VALUES` features at once; what is larger is
cut. A window is a tile and, around it, all cells that the tile depends on
(`encoder_reach`, `decoder_reach`); what is computed for this border is
dropped. A chunk continues where the one before ended, by the carry of the
autoencoder. So the result is that of the whole video, with no blending and no
seam. All windows have one shape, and a short last chunk is filled up by
repeating its end, on which nothing before depends: two programs are compiled
for a video, one for the chunk that starts it and one for all others.

Where what is decoded depends on later frames (`decode_late`), it comes out late: frames are whole,
chunks go in one after the other, and more follow the last until all frames are out.

Where cells of a frame see all others, as in the middle of Wan's autoencoders, that part of the
network sees whole frames, chunk after chunk, at the resolution of the latents; its features are
kept in host memory, and what is before or after it is cut into tiles.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float, Frames, Latents, PyTree, UInt8
from jvdm.compiling import Program
from jvdm.errors import ConfigError
from jvdm.parallel import constrain, token_parts
from jvdm.vae.autoencoder import Autoencoder, ChunkedEncoder, Posterior

HostFrames = Float[np.ndarray, "B T h w 3"]
"""Decoded video in host memory, RGB of about 0..1."""

Pixels = Frames | Float[np.ndarray, "B T H W 3"] | UInt8[np.ndarray, "B T H W 3"]
"""Pixel video to encode: RGB in 0..1, or bytes."""

AnyLatents = Latents | Float[np.ndarray, "B F H W C"]
"""Latent video on the device or in host memory."""

WHOLE_VALUES = 320_000_000
"""Values of the widest features of all frames of a batch that a device codes at once."""

TILE, CHUNK = (32, 32), 4
"""Latent cells and frames of the pieces of a larger video."""

LARGEST = 3 * WHOLE_VALUES
"""Values of a latent frame that is not cut into tiles where these see far beyond themselves."""


class Tile(NamedTuple):
    """Where a tile lies in the video, in latent cells.

    Attributes:
        start: Row and column of its first cell.
        window: Row and column of the first cell of the window that it is computed from.
    """

    start: tuple[int, int]
    window: tuple[int, int]


class Tiling(NamedTuple):
    """The tiles that cover a video: they have one size, and their windows have one.

    Attributes:
        tiles: In row-major order. The last ones overlap their neighbours where the
            size of the video is no multiple of the size of a tile.
        video: Height and width of the video in latent cells.
        size: Height and width of every tile.
        window: Height and width of every window.
    """

    tiles: tuple[Tile, ...]
    video: tuple[int, int]
    size: tuple[int, int]
    window: tuple[int, int]


def make_tiling(video: tuple[int, int], tile: tuple[int, int], reach: int) -> Tiling:
    """Covers a video with tiles.

    Args:
        video: Height and width in latent cells.
        tile: Height and width of a tile; a side of the video that is no longer than that
            of a window stays whole.
        reach: Cells on every side that a tile depends on.

    Raises:
        ConfigError: If a side of `tile` is not positive.
    """
    if min(tile) < 1:
        raise ConfigError(f"tile is {tile}", "a tile has 1 latent cell or more on each side")
    rows, height, window_height = _cover(video[0], tile[0], reach)
    columns, width, window_width = _cover(video[1], tile[1], reach)
    tiles = (Tile((y, x), (top, left)) for y, top in rows for x, left in columns)
    return Tiling(tuple(tiles), video, (height, width), (window_height, window_width))


def decode(
    vae: Any,
    params: PyTree,
    latents: AnyLatents,
    *,
    tile: tuple[int, int] | None = None,
    chunk: int | None = None,
) -> Iterator[HostFrames]:
    """Decodes a video piece after piece; the pieces together equal `vae.decode`.

    The device holds the work of one window and the carries of all.

    Args:
        vae: The autoencoder, with `decode_chunk` or `decode_late`.
        params: Its parameters.
        latents: The latent video.
        tile: Height and width of a tile in latent cells; None decides by size.
        chunk: Latent frames decoded at a time; None decides by size.

    Returns:
        Iterator over float32 frames, not clipped: those of the first `chunk` latent
        frames, then of as many more at a time, the last piece being what is left. Where they
        come late, a piece is what came out, and `tile` is not used.

    Raises:
        ConfigError: If `tile` or `chunk` is not positive.
    """
    tile, chunk = pieces(vae, latents.shape, tile, chunk)
    if hasattr(vae, "decode_late"):
        return _decode_late(vae, params, np.asarray(latents), _spans(latents.shape[1], chunk))
    _, count, height, width, _ = latents.shape
    tiles = make_tiling((height, width), tile, vae.decoder_reach)
    source, spans, method = np.asarray(latents), _spans(count, chunk), "decode_chunk"
    if len(tiles.tiles) > 1 and hasattr(vae, "decode_frames"):
        source, method = _whole_frames(vae, "decode_frames", params, source, spans), "decode_cells"
    cell = vae.strides[1:]
    code = functools.partial(_window, vae, method, params, cell=cell)
    written = _Units(vae.prefix_of_latents, cell)
    job = _Job(code, source, tiles, spans, read=_Units(int, (1, 1)), written=written)
    streams = [_code_tile(job, tile) for tile in job.tiling.tiles]
    return (_assemble(pieces, job) for pieces in zip(*streams, strict=True))


def _decode_late(
    vae: Any, params: PyTree, source: np.ndarray, spans: list[tuple[int, int]]
) -> Iterator[HostFrames]:
    """Yields the frames of a video as they come out; zeros follow its latents."""
    total, chunk, done = vae.num_frames(source.shape[1]), spans[0][1], 0  # no longer than it
    run = functools.partial(_passed, vae, params)
    count, shape = np.int32(source.shape[1]), (len(source), chunk, *source.shape[2:])
    carry = jax.eval_shape(run, np.zeros(shape, source.dtype), None, count, count)[2]
    carry = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), carry)
    for start in itertools.count(0, chunk):
        piece = np.zeros(shape, source.dtype)
        given = source[:, start : start + chunk]
        piece[:, : given.shape[1]] = given
        frames, first, carry = run(piece, carry, np.int32(start), count)
        if (came := min(int(first) + frames.shape[1], total)) > done:
            yield np.asarray(frames)[:, done - int(first) : came - int(first)]
            done = came
        if done == total:
            return


def encode(
    vae: ChunkedEncoder,
    params: PyTree,
    frames: Pixels,
    *,
    tile: tuple[int, int] | None = None,
    chunk: int | None = None,
) -> Posterior:
    """Encodes a video of any size and length; equals `vae.encode`.

    The device holds the work and the carry of one window, whatever the size of the video.

    Args:
        vae: The autoencoder.
        params: Its parameters.
        frames: Of a length and size that fit. Bytes become numbers in 0..1 on the
            device, window by window.
        tile: Height and width of a tile in latent cells; None decides by size.
        chunk: Latent frames encoded at a time; None decides by size.

    Raises:
        ShapeError: If the size of the video does not fit; it names the two nearest that do.
        ConfigError: If `tile` or `chunk` is not positive.
    """
    batch, num_frames, height, width, _ = frames.shape
    shape = (batch, vae.latent_frames(num_frames), *vae.latent_size(height, width))
    tile, chunk = pieces(vae, shape, tile, chunk)
    tiles, spans = make_tiling(shape[2:], tile, vae.encoder_reach), _spans(shape[1], chunk)
    in_parts = len(tiles.tiles) > 1 and hasattr(vae, "encode_frames")
    method = "encode_cells" if in_parts else "encode_chunk"
    code = functools.partial(_window, vae, method, params, cell=(1, 1))
    read = _Units(vae.prefix_of_latents, vae.strides[1:])
    job = _Job(code, np.asarray(frames), tiles, spans, read, written=_Units(int, (1, 1)))
    streams = (_code_tile(job, tile) for tile in job.tiling.tiles)
    coded = _assemble((np.concatenate(list(stream), axis=1) for stream in streams), job)
    if in_parts:
        coded = _whole_frames(vae, "encode_frames", params, coded, spans)
    mean, log_variance = jnp.split(jnp.asarray(coded), [vae.latent_channels], axis=-1)
    return Posterior(mean, log_variance)


def in_pieces(vae: Any) -> bool:
    """Whether it can decode a video in pieces."""
    return hasattr(vae, "decode_chunk") or hasattr(vae, "decode_late")


def pixels_at_once(vae: Autoencoder, pixels: int) -> bool:
    """Whether so many pixels of all frames of a batch are coded at once, by all devices."""
    return vae.features_per_pixel * pixels <= WHOLE_VALUES * token_parts()


def at_once(vae: Autoencoder, shape: Sequence[int]) -> bool:
    """Whether a video of latents `shape` is coded at once."""
    return pixels_at_once(vae, math.prod(shape[:4]) * math.prod(vae.strides))


def pieces(
    vae: Autoencoder,
    shape: Sequence[int],
    tile: tuple[int, int] | None = None,
    chunk: int | None = None,
) -> tuple[tuple[int, int], int]:
    """Returns tile and chunk, where they are open those of a video of latents `shape`."""
    batch, frames, height, width = shape[:4]
    values = vae.features_per_pixel * batch * height * width * math.prod(vae.strides)
    values /= token_parts()
    usual = (tile_of(vae), CHUNK)
    if at_once(vae, shape):
        usual = ((height, width), frames)
    elif hasattr(vae, "tile") and values <= LARGEST:  # its border costs more than it saves
        usual = ((height, width), max(1, int(WHOLE_VALUES / values)))
    return usual[0] if tile is None else tile, usual[1] if chunk is None else chunk


def tile_of(vae: Autoencoder) -> tuple[int, int]:
    """Returns the usual size of a tile, which an autoencoder that sees far says itself."""
    return getattr(vae, "tile", TILE)


class _Units(NamedTuple):
    """How an array counts what is `n` latent frames long, or one latent cell high and wide."""

    frames_until: Callable[[int], int]
    cell: tuple[int, int]


class _Job(NamedTuple):
    """One video to encode or decode; `spans` are the chunks, in latent frames."""

    code: Callable[..., tuple[Array, Any]]
    source: np.ndarray
    tiling: Tiling
    spans: list[tuple[int, int]]
    read: _Units
    written: _Units


def _code_tile(job: _Job, tile: Tile) -> Iterator[np.ndarray]:
    """Yields the chunks of one tile; the carry lives in this generator."""
    rows, columns = (
        slice(start * cell, (start + length) * cell)
        for start, length, cell in zip(tile.window, job.tiling.window, job.read.cell, strict=True)
    )
    window = job.source[:, :, rows, columns]
    corner = np.subtract(tile.start, tile.window).astype(np.int32)
    chunk, carry = job.spans[0][1], None
    for start, stop in job.spans:
        first, last, end = map(job.read.frames_until, (start, stop, start + chunk))
        missing = [(0, 0)] * window.ndim
        missing[1] = (0, end - last)
        piece = np.pad(window[:, first:last], missing, mode="edge")
        coded, carry = job.code(piece, carry, corner, size=job.tiling.size)
        written = job.written.frames_until(stop) - job.written.frames_until(start)
        yield np.asarray(coded)[:, :written]


def _assemble(pieces: Iterable[np.ndarray], job: _Job) -> np.ndarray:
    """Puts one piece per tile at its place; where tiles overlap they are equal."""
    video = None
    for tile, piece in zip(job.tiling.tiles, pieces, strict=True):
        batch, frames, height, width, channels = piece.shape
        if video is None:
            rows, columns = np.multiply(job.tiling.video, job.written.cell)
            video = np.empty((batch, frames, rows, columns, channels), piece.dtype)
        top, left = np.multiply(tile.start, job.written.cell)
        video[:, :, top : top + height, left : left + width] = piece
    assert video is not None
    return video


@functools.partial(
    Program, static_argnums=(0, 1), static_argnames=("cell", "size"), donate_argnums=4
)
def _window(
    vae: Any,
    method: str,
    params: PyTree,
    x: Any,
    carry: Any,
    corner: Any,
    *,
    cell: tuple[int, int],
    size: tuple[int, int],
) -> tuple[Array, Any]:
    """Codes what is next of a window by a method of the autoencoder; returns its tile."""
    if x.dtype == jnp.uint8:
        x = x.astype(jnp.float32) / 255.0
    x = constrain(x, "batch", "frames", "lines")
    coded, carry = getattr(vae.bind({"params": params}), method)(x, carry)
    coded = jnp.concatenate(coded, -1) if isinstance(coded, Posterior) else coded
    corner, size = corner * jnp.array(cell), (size[0] * cell[0], size[1] * cell[1])
    return _cut(coded, corner, size), carry


@functools.partial(Program, static_argnums=0, donate_argnums=3)
def _passed(
    vae: Any, params: PyTree, x: Any, carry: Any, first: Any, total: Any
) -> tuple[Array, Array, Any]:
    """Decodes what is next of a video whose frames come late."""
    x = constrain(x, "batch", "frames", "lines")
    return vae.bind({"params": params}).decode_late(x, carry, first, total)


def _whole_frames(
    vae: Any, method: str, params: PyTree, source: np.ndarray, spans: list[tuple[int, int]]
) -> np.ndarray:
    """Returns what a part that sees whole frames of latent cells makes of them, chunk by chunk."""
    video, cells = source.shape[2:4], _Units(int, (1, 1))
    code = functools.partial(_window, vae, method, params, cell=(1, 1))
    job = _Job(code, source, make_tiling(video, video, 0), spans, cells, cells)
    return np.concatenate(list(_code_tile(job, job.tiling.tiles[0])), axis=1)


def _cut(
    x: Float[Array, "B T H W C"], corner: Array, size: tuple[int, int]
) -> Float[Array, "B T h w C"]:
    x = jax.lax.dynamic_slice_in_dim(x, corner[0], size[0], axis=2)
    return jax.lax.dynamic_slice_in_dim(x, corner[1], size[1], axis=3)


def _cover(size: int, tile: int, reach: int) -> tuple[list[tuple[int, int]], int, int]:
    """Returns (start of tile, start of its window) along one axis, and both lengths."""
    window = tile + 2 * reach
    if window >= size:
        return [(0, 0)], size, size
    starts = [min(start, size - tile) for start in range(0, size, tile)]
    # A window that would pass the border of the video is shifted to end there: the zeros
    # that a convolution adds at the border are then those of the whole video.
    return [(start, min(max(start - reach, 0), size - window)) for start in starts], tile, window


def _spans(latent_frames: int, chunk: int) -> list[tuple[int, int]]:
    if chunk < 1:
        raise ConfigError(f"chunk is {chunk}", "a chunk has 1 latent frame or more")
    starts = range(0, latent_frames, chunk)
    return [(start, min(start + chunk, latent_frames)) for start in starts]
