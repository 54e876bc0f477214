"""Frames to the bytes of an MP4, WebM, GIF or PNG; equal frames give equal bytes."""

from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from jvdm.errors import ConfigError
from jvdm.media.frames import Image

MAX_GIF_FPS = 50  # browsers slow down pictures that are shown for less than 0.02 s
_THREADS = "4"  # fixed, because what encoders write depends on their number
_BT709, _TV_RANGE = 1, 1  # colour matrix; luma 16..235, the range that browsers assume
# Visually lossless; 23 is the encoder's default. Its macroblock tree reads memory that nobody wrote
# where AVX-512 is used (x264 165), so that equal frames of many sizes gave other bytes each time.
_X264 = {"crf": "18", "mbtree": "0", "threads": _THREADS}
_AT_ONCE = {"flush_packets": "1"}
_FRAGMENTS = {"frag_duration": "250000"}  # microseconds; key frames are seconds apart
_VP9 = {"crf": "20", "b": "0", "cpu-used": "4", "threads": _THREADS}


def write_mp4(path: Path, frames: Iterable[Image], fps: float) -> None:
    """Writes H.264 that plays in browsers before all of it has arrived."""
    _write_film(path, frames, fps, "libx264", _X264, {"movflags": "+faststart"})


def write_webm(path: Path, frames: Iterable[Image], fps: float) -> None:
    """Writes VP9."""
    _write_film(path, frames, fps, "libvpx-vp9", _VP9, {"fflags": "+bitexact"})


def write_live_mp4(path: Path, frames: Iterable[Image], fps: float) -> None:
    """Writes H.264 in short fragments: what is there plays while the rest is made."""
    container = {"movflags": "+frag_keyframe+empty_moov+default_base_moof", **_FRAGMENTS}
    options = {**_X264, "g": _second(fps), "bf": "0", "rc-lookahead": "0", "sc_threshold": "0"}
    _write_film(path, frames, fps, "libx264", options, {**container, **_AT_ONCE})


def write_live_webm(path: Path, frames: Iterable[Image], fps: float) -> None:
    """Writes VP9 in clusters of a second: what is there plays while the rest is made."""
    options = {**_VP9, "g": _second(fps), "lag-in-frames": "0", "deadline": "realtime"}
    container = {"fflags": "+bitexact", "cluster_time_limit": "1000", **_AT_ONCE}
    _write_film(path, frames, fps, "libvpx-vp9", options, container)


def _second(fps: float) -> str:
    """Returns the number of frames of a second."""
    return str(max(1, round(fps)))


def _write_film(
    path: Path,
    frames: Iterable[Image],
    fps: float,
    codec: str,
    options: Mapping[str, str],
    container_options: Mapping[str, str],
) -> None:
    """Encodes frame by frame, so that only one frame is held beside the input.

    Odd sizes are padded by one row or column.
    """
    import av

    with av.open(str(path), "w", options=dict(container_options)) as container:
        stream: Any = None
        for frame in frames:
            even = np.pad(frame, [(0, size % 2) for size in frame.shape[:2]] + [(0, 0)], "edge")
            if stream is None:
                stream = container.add_stream(codec, rate=exact_rate(fps), options=dict(options))
                stream.height, stream.width = even.shape[:2]
                stream.pix_fmt = "yuv420p"
                context = stream.codec_context
                context.colorspace = context.color_primaries = context.color_trc = _BT709
                context.color_range = _TV_RANGE
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709")
            container.mux(stream.encode(picture))
        if stream is not None:
            container.mux(stream.encode(None))


def write_gif(path: Path, frames: Iterable[Image], fps: float) -> None:
    """Writes an endless GIF with one palette of 256 colours for the whole film.

    Raises:
        ConfigError: If the rate is above `MAX_GIF_FPS`.
    """
    import av
    import av.error
    import av.filter

    if fps > MAX_GIF_FPS:
        why = f"a GIF is shown at {MAX_GIF_FPS} frames per second at most"
        raise ConfigError(f"fps is {fps:g}", why, "write an .mp4, or use a smaller fps")
    graph = av.filter.Graph()
    with av.open(str(path), "w", format="gif", options={"loop": "0"}) as container:
        stream = container.add_stream("gif", rate=exact_rate(fps))
        stream.pix_fmt = "pal8"
        source = None
        for index, frame in enumerate(frames):
            if source is None:
                stream.height, stream.width = frame.shape[:2]
                source = graph.add_buffer(
                    width=stream.width,
                    height=stream.height,
                    format=av.VideoFormat("rgb24"),
                    time_base=1 / exact_rate(fps),
                )
                _link_palette(graph, source)
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts, picture.time_base = index, 1 / exact_rate(fps)
            graph.push(picture)
        if source is None:
            return
        graph.push(None)
        while True:
            try:
                container.mux(stream.encode(graph.vpull()))
            except (av.error.EOFError, av.error.BlockingIOError):
                break
        container.mux(stream.encode(None))


def write_png(path: Path, image: Image) -> None:
    """Writes a picture without loss."""
    import av

    codec = av.CodecContext.create("png", "w")
    codec.height, codec.width = image.shape[:2]
    codec.pix_fmt, codec.time_base = "rgb24", Fraction(1)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    packets = [*codec.encode(frame), *codec.encode(None)]
    path.write_bytes(b"".join(bytes(packet) for packet in packets))


def exact_rate(fps: float) -> Fraction:
    """Returns an exact rate; 23.976 becomes 24000/1001."""
    ntsc = round(fps * 1.001)
    if abs(fps - ntsc / 1.001) < 1e-3:
        return Fraction(ntsc * 1000, 1001)
    return Fraction(fps).limit_denominator(1001)


def _link_palette(graph: Any, source: Any) -> None:
    """Adds the filters that find the best palette and apply it without dither."""
    split, palette = graph.add("split"), graph.add("palettegen")
    use, sink = graph.add("paletteuse", "dither=none"), graph.add("buffersink")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()


WRITERS = {".mp4": write_mp4, ".webm": write_webm, ".gif": write_gif}
"""What writes a film, by the ending of the file."""

LIVE_WRITERS = {".mp4": write_live_mp4, ".webm": write_live_webm}
"""What writes a film that others watch meanwhile, by the ending of the file."""
