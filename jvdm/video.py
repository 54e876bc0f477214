"""Videos on the host: uint8 frames in memory, on disk and in a notebook."""

import base64
import collections
import dataclasses
import hashlib
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from jvdm import media
from jvdm.arrays import UInt8
from jvdm.errors import ConfigError
from jvdm.files import replacing
from jvdm.media import Image

MAX_INLINE_BYTES = 10_000_000  # larger videos bloat a notebook file
MAX_BYTES = 2_000_000_000  # of the frames of a file that are read at once
SHEET_GAP = 2  # pixels between the frames of a contact sheet

Frames = UInt8[np.ndarray, "T H W 3"]
Fit = Literal["crop", "pad", "stretch"]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Video:
    """Frames with their rate; the last expression of a notebook cell plays it.

    `len(video)` is the number of frames, `video[0]` a frame, `video[4:]` a shorter video, and
    `numpy.asarray(video)` are the frames.

    Attributes:
        frames: RGB, 0..255.
        fps: Frames per second, 1 to 240.
        record: How it was made, see `jvdm.record`; None for a file that was read.

    Raises:
        ConfigError: If the rate is another, or the frames are.

    Example:
        >>> video = Video(np.zeros((9, 32, 48, 3), np.uint8), fps=12.0)
        >>> video[4:]
        Video(5 frames, 48x32, 12 fps)
    """

    frames: Frames
    fps: float
    record: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        media.check_fps("fps", self.fps)
        shape, kind = np.shape(self.frames), getattr(self.frames, "dtype", type(self.frames))
        if kind != np.uint8 or len(shape) != 4 or shape[-1] != 3:
            what = f"frames are {kind} of the shape {shape}"
            raise ConfigError(what, "needed is uint8 RGB of the shape [T, H, W, 3]", "convert them")

    def __repr__(self) -> str:
        count, height, width, _ = self.frames.shape
        return f"Video({count} frames, {width}x{height}, {self.fps:g} fps)"

    def __len__(self) -> int:
        return len(self.frames)

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> "Video": ...
    def __getitem__(self, index: int | slice) -> "Image | Video":
        frames = self.frames[index]
        return Video(frames, self.fps, self.record) if isinstance(index, slice) else frames

    def __iter__(self) -> Iterator[Image]:
        return iter(self.frames)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.frames, dtype, copy=copy)

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
        """Writes an `.mp4` (H.264, plays in browsers), `.webm` (VP9) or `.gif`.

        Equal frames give equal bytes. Odd sizes are padded by one row or column.

        Raises:
            ConfigError: If the suffix is another one or the file cannot be written.
        """
        path = Path(path).expanduser()
        write = media.WRITERS.get(path.suffix.lower())
        if write is None:
            raise ConfigError(
                f"a video cannot be saved as {path.name}",
                f"known endings are {', '.join(media.WRITERS)}",
                f"use {path.with_suffix('.mp4').name}",
            )
        with replacing(path) as temporary:
            write(temporary, self.frames, self.fps)
        return path

    def to_pil(self) -> list[Any]:
        """Returns the frames as `PIL.Image`s."""
        from PIL import Image as Pillow

        return [Pillow.fromarray(frame) for frame in self.frames]

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
        folder = Path(folder).expanduser()
        for index, frame in enumerate(self.frames):
            write_image(folder / f"frame_{index:04d}.png", frame)
        return folder

    def resampled(self, fps: float) -> "Video":
        """Returns the frames shown at each instant of another rate; the duration stays."""
        if fps == self.fps:
            return self
        media.check_fps("fps", fps)
        count = max(1, round(len(self.frames) * fps / self.fps))
        shown = np.minimum(np.arange(count) * self.fps / fps + 1e-6, len(self.frames) - 1)
        return Video(self.frames[shown.astype(int)], fps, self.record)

    def digest(self) -> str:
        """Returns the sha256 of the frames' values and shape."""
        state = hashlib.sha256(repr(self.frames.shape).encode())
        state.update(np.ascontiguousarray(self.frames).data)
        return state.hexdigest()


def read_video(
    path: str | Path,
    fps: float | None = None,
    last_frames: int | None = None,
    notes: list[str] | None = None,
) -> Video:
    """Reads the film of a file: upright, with square pixels, as RGB of BT.709 (`jvdm.media`).

    Args:
        path: Any container and codec that FFmpeg knows.
        fps: Rate, 1 to 240; the frame shown at each instant is taken. None is the file's own:
            every frame where they are even, else the usual distance of two frames.
        last_frames: Keep only so many frames at the end; memory is bounded by
            them. None keeps all, up to `MAX_BYTES`.
        notes: What was done to the pictures is added here.

    Raises:
        ConfigError: If the file is missing, holds no video, cannot be decoded or is too long.
    """
    if fps is None:
        with media.opened(path) as film:
            fps = film.rate()
    media.check_fps("fps", fps)
    kept: collections.deque[Any] = collections.deque(maxlen=last_frames)
    with media.opened(path, notes) as film:
        for frame, count in film.shown(fps):
            bytes_needed = 3 * frame.width * frame.height * (len(kept) + count)
            if last_frames is None and bytes_needed > MAX_BYTES:
                what = f"{path} has {len(kept) + count} frames or more at {fps:g} per second"
                why = f"they take {bytes_needed / 1e9:.3g} GB, {MAX_BYTES / 1e9:g} GB are read"
                raise ConfigError(what, why, "cut the film")
            kept.extend([frame] * min(count, last_frames or count))
        pictures: dict[int, Image] = {}
        for frame in kept:
            if id(frame) not in pictures:
                pictures[id(frame)] = film.picture(frame)
        frames = [pictures[id(frame)] for frame in kept]
        if len({picture.shape for picture in frames}) != 1:
            raise ValueError("its frames differ in size" if frames else "it has no frames")
    return Video(np.stack(frames), fps)


def write_image(path: str | Path, image: Image) -> Path:
    """Writes a PNG.

    Raises:
        ConfigError: If the file cannot be written.
    """
    path = Path(path).expanduser()
    with replacing(path) as temporary:
        media.write_png(temporary, image)
    return path


def fit(
    frames: Frames, height: int, width: int, how: Fit = "crop"
) -> UInt8[np.ndarray, "T height width 3"]:
    """Brings frames to another size.

    Args:
        frames: Video of any size.
        height: Wanted pixels.
        width: Wanted pixels.
        how: "crop" cuts off at both sides what exceeds the shape `height : width`, "pad" puts
            black beside what lacks, "stretch" changes the proportions.
    """
    _, old_height, old_width, _ = frames.shape
    if (old_height, old_width) == (height, width):
        return frames
    if how == "pad":
        scale = min(height / old_height, width / old_width)
        inner = max(1, round(old_height * scale)), max(1, round(old_width * scale))
        padded = np.zeros((len(frames), height, width, 3), np.uint8)
        top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
        padded[:, top : top + inner[0], left : left + inner[1]] = fit(frames, *inner, "stretch")
        return padded
    if how == "crop":
        scale = min(old_height / height, old_width / width)
        crop_height = min(old_height, max(1, round(height * scale)))
        crop_width = min(old_width, max(1, round(width * scale)))
        top, left = (old_height - crop_height) // 2, (old_width - crop_width) // 2
        frames = frames[:, top : top + crop_height, left : left + crop_width]
    return np.stack([media.resized(frame, height, width) for frame in frames])
