"""Videos on the host: uint8 frames in memory, on disk and in a notebook.

Reading and writing go through PyAV, which is imported when first used.
"""

import base64
import collections
import dataclasses
import hashlib
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from jvdm.arrays import UInt8
from jvdm.errors import ConfigError
from jvdm.files import replacing

CRF = "18"  # visually lossless for H.264; 23 is the encoder's default
ENCODER_THREADS = 4  # fixed, because x264's output depends on their number
MAX_INLINE_BYTES = 10_000_000  # larger videos bloat a notebook file
SHEET_GAP = 2  # pixels between the frames of a contact sheet
BT709 = 1  # number of the colour matrix in H.264 and in FFmpeg
DEFAULT_FPS = 24.0  # of a file that does not tell
TV_RANGE = 1  # luma 16..235, the range that browsers assume

Frames = UInt8[np.ndarray, "T H W 3"]
Image = UInt8[np.ndarray, "H W 3"]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Video:
    """Frames with their rate; the last expression of a notebook cell plays it.

    Attributes:
        frames: RGB, 0..255.
        fps: Frames per second.
        record: How it was made, see `jvdm.record`; None for a file that was read.
    """

    frames: Frames
    fps: float
    record: Mapping[str, Any] | None = None

    def __repr__(self) -> str:
        count, height, width, _ = self.frames.shape
        return f"Video({count} frames, {width}x{height}, {self.fps:g} fps)"

    def _repr_html_(self) -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "video.mp4"
            self.save(path)
            content = path.read_bytes()
        if len(content) > MAX_INLINE_BYTES:
            return f"{self!r}: {len(content) / 1e6:.0f} MB, too large to show; save it to a file"
        data = base64.b64encode(content).decode()
        width = max(self.frames.shape[2], 256)
        return (
            f'<video controls autoplay loop muted playsinline width="{width}" '
            f'src="data:video/mp4;base64,{data}"></video>'
        )

    def save(self, path: str | Path) -> Path:
        """Writes an `.mp4` (H.264, plays in browsers) or a `.gif`.

        Equal frames give equal bytes. Odd sizes are padded by one row or column.

        Raises:
            ConfigError: If the suffix is another one or the file cannot be written.
        """
        path = Path(path)
        writers = {".mp4": _write_mp4, ".gif": _write_gif}
        if path.suffix.lower() not in writers:
            raise ConfigError(
                f"a video cannot be saved as {path.name}",
                f"known endings are {', '.join(writers)}",
                f"use {path.with_suffix('.mp4').name}",
            )
        with replacing(path) as temporary:
            writers[path.suffix.lower()](temporary, self.frames, self.fps)
        return path

    def contact_sheet(self, columns: int = 9, rows: int = 1) -> Image:
        """Returns evenly spaced frames, the first and the last among them, as one picture."""
        count, height, width, _ = self.frames.shape
        chosen = np.linspace(0, count - 1, min(columns * rows, count)).round().astype(int)
        columns = min(columns, len(chosen))
        rows = math.ceil(len(chosen) / columns)
        step_y, step_x = height + SHEET_GAP, width + SHEET_GAP
        sheet = np.full((rows * step_y - SHEET_GAP, columns * step_x - SHEET_GAP, 3), 255, np.uint8)
        for place, frame in enumerate(chosen):
            y, x = place // columns * step_y, place % columns * step_x
            sheet[y : y + height, x : x + width] = self.frames[frame]
        return sheet

    def save_sheet(self, path: str | Path, columns: int = 9) -> Path:
        """Writes the contact sheet as PNG."""
        return write_image(path, self.contact_sheet(columns))

    def save_frames(self, folder: str | Path) -> Path:
        """Writes every frame as `frame_0000.png`, ... into `folder`."""
        for index, frame in enumerate(self.frames):
            write_image(Path(folder) / f"frame_{index:04d}.png", frame)
        return Path(folder)

    def resampled(self, fps: float) -> "Video":
        """Returns the frames shown at each instant of another rate; the duration stays."""
        if fps == self.fps:
            return self
        count = max(1, round(len(self.frames) * fps / self.fps))
        shown = np.minimum(np.arange(count) * self.fps / fps + 1e-6, len(self.frames) - 1)
        return Video(self.frames[shown.astype(int)], fps, self.record)

    def digest(self) -> str:
        """Returns the sha256 of the frames' values and shape."""
        state = hashlib.sha256(repr(self.frames.shape).encode())
        state.update(np.ascontiguousarray(self.frames).data)
        return state.hexdigest()


def read_video(path: str | Path, fps: float | None = None, last_frames: int | None = None) -> Video:
    """Decodes a video file.

    Args:
        path: Any container and codec that FFmpeg knows.
        fps: Rate to resample to, by taking the frame shown at each instant;
            None keeps all frames and the file's own rate.
        last_frames: Keep only so many frames at the end; memory is bounded by
            them. None keeps all.

    Raises:
        ConfigError: If the file is missing, holds no video or cannot be decoded.
    """
    kept: collections.deque[np.ndarray] = collections.deque(maxlen=last_frames)
    rate, shown, start = 0.0, 0, None
    for index, (frame, rate) in enumerate(_decoded(_existing(path, "video"))):
        if fps is None or rate <= 0:
            kept.append(frame.to_ndarray(format="rgb24"))
            continue
        now = frame.time if frame.time is not None else index / rate
        start = now if start is None else start
        # How many resampled frames have begun when this frame ends: 0, 1 or several more.
        until = math.ceil(round((now - start + 1 / rate) * fps, 6))
        if until > shown:
            kept.extend([frame.to_ndarray(format="rgb24")] * (until - shown))
            shown = until
    if len({frame.shape for frame in kept}) != 1:
        raise _undecodable(path, "its frames differ in size" if kept else "it has no frames")
    return Video(np.stack(kept), fps or rate or DEFAULT_FPS)


def read_image(path: str | Path) -> Image:
    """Decodes a picture as RGB; transparency is dropped.

    Raises:
        ConfigError: If the file is missing or cannot be decoded.
    """
    try:
        for frame, _ in _decoded(_existing(path, "image")):
            return frame.to_ndarray(format="rgb24")
    except _Undecodable as error:
        raise ConfigError(
            f"{path} is not a picture", error.why, "use a PNG or JPEG file"
        ) from error
    raise ConfigError(f"{path} is not a picture", "it is empty", "use a PNG or JPEG file")


def write_image(path: str | Path, image: Image) -> Path:
    """Writes a PNG.

    Raises:
        ConfigError: If the file cannot be written.
    """
    import av

    path = Path(path)
    with replacing(path) as temporary:
        codec = av.CodecContext.create("png", "w")
        codec.height, codec.width = image.shape[:2]
        codec.pix_fmt, codec.time_base = "rgb24", Fraction(1)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        packets = [*codec.encode(frame), *codec.encode(None)]
        temporary.write_bytes(b"".join(bytes(packet) for packet in packets))
    return path


def fit(frames: Frames, height: int, width: int) -> UInt8[np.ndarray, "T height width 3"]:
    """Crops the centre to the shape `height : width` and resizes it.

    Args:
        frames: Video of any size.
        height: Wanted pixels.
        width: Wanted pixels.
    """
    import av

    _, old_height, old_width, _ = frames.shape
    if (old_height, old_width) == (height, width):
        return frames
    scale = min(old_height / height, old_width / width)
    crop_height = min(old_height, max(1, round(height * scale)))
    crop_width = min(old_width, max(1, round(width * scale)))
    top, left = (old_height - crop_height) // 2, (old_width - crop_width) // 2
    cropped = frames[:, top : top + crop_height, left : left + crop_width]
    resized = []
    for frame in cropped:
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        scaled = picture.reformat(width=width, height=height, interpolation="BICUBIC")
        resized.append(scaled.to_ndarray(format="rgb24"))
    return np.stack(resized)


def _write_mp4(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Encodes frame by frame, so that only one frame is held beside the input."""
    import av

    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = None
        for frame in frames:
            even = np.pad(frame, [(0, size % 2) for size in frame.shape[:2]] + [(0, 0)], "edge")
            if stream is None:
                options = {"crf": CRF, "threads": str(ENCODER_THREADS)}
                stream = container.add_stream("libx264", rate=_rate(fps), options=options)
                stream.height, stream.width = even.shape[:2]
                stream.pix_fmt = "yuv420p"
                context = stream.codec_context
                context.colorspace = context.color_primaries = context.color_trc = BT709
                context.color_range = TV_RANGE
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709")
            container.mux(stream.encode(picture))
        if stream is not None:
            container.mux(stream.encode(None))


def _write_gif(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Encodes with one palette of 256 colours for the whole video."""
    import av
    import av.error
    import av.filter

    graph = av.filter.Graph()
    with av.open(str(path), "w", format="gif", options={"loop": "0"}) as container:
        stream = container.add_stream("gif", rate=_rate(fps))
        stream.pix_fmt = "pal8"
        source = None
        for index, frame in enumerate(frames):
            if source is None:
                stream.height, stream.width = frame.shape[:2]
                source = graph.add_buffer(
                    width=stream.width,
                    height=stream.height,
                    format=av.VideoFormat("rgb24"),
                    time_base=1 / _rate(fps),
                )
                _link_palette(graph, source)
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts, picture.time_base = index, 1 / _rate(fps)
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


def _rate(fps: float) -> Fraction:
    """Returns an exact rate; 23.976 becomes 24000/1001."""
    ntsc = round(fps * 1.001)
    if abs(fps - ntsc / 1.001) < 1e-3:
        return Fraction(ntsc * 1000, 1001)
    return Fraction(fps).limit_denominator(1001)


def _existing(path: str | Path, kind: str) -> Path:
    """Returns the path, or says that there is no such file."""
    if not Path(path).is_file():
        raise ConfigError(f"{kind} {path} does not exist", "", "give the path of a file")
    return Path(path)


class _Undecodable(ConfigError):
    """A file that FFmpeg cannot read."""


def _undecodable(path: str | Path, why: str) -> ConfigError:
    """Returns the error for a file that is no readable video."""
    fix = "convert it, for example with `ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4`"
    return _Undecodable(f"{path} cannot be decoded as video", why, fix)


def _decoded(path: Path) -> Iterator[tuple[Any, float]]:
    """Yields every decoded frame with the file's frame rate, 0 if unknown."""
    import av
    import av.error

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise _undecodable(path, "it has no video stream")
            stream = container.streams.video[0]
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            for frame in container.decode(stream):
                yield frame, rate
    except (av.error.FFmpegError, ValueError) as error:
        raise _undecodable(path, str(error)) from error
