"""Video files as clips: the frames shown at given instants, at one size."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jvdm.arrays import UInt8
from jvdm.video import fit

_ROUNDING = 1e-4  # seconds: containers store times in ticks


class Unusable(Exception):
    """Why a video is left out."""


def decode_clip(
    path: Path, start: float, num_frames: int, fps: float, size: tuple[int, int]
) -> UInt8[np.ndarray, "T H W 3"]:
    """Decodes the frames shown at `start`, `start + 1 / fps`, ...

    Args:
        path: Any container and codec that FFmpeg knows.
        start: Seconds after the first frame.
        num_frames: How many frames.
        fps: Their rate.
        size: Height and width to crop and resize to.

    Raises:
        Unusable: If the file cannot be decoded that far.
    """
    chosen: list[np.ndarray] = []
    try:
        for frame, until in _shown(path, start):
            picture = None
            while len(chosen) < num_frames and start + len(chosen) / fps < until - _ROUNDING:
                picture = _picture(frame, size) if picture is None else picture
                chosen.append(picture)
            if len(chosen) == num_frames:
                return np.stack(chosen)
    except Unusable as error:
        raise Unusable(f"frame {len(chosen)} from {start:.2f} s on: {error}") from error
    raise Unusable(
        f"only {len(chosen)} of {num_frames} frames from {start:.2f} s on can be decoded"
    )


def _picture(frame: Any, size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    turned = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
    return fit(turned[None], *size)[0]


def _shown(path: Path, start: float) -> Iterator[tuple[Any, float]]:
    """Yields frames from `start` or before on, each with the time until which it is shown."""
    with _opened(path) as (container, stream):
        first = stream.start_time or 0
        if start > 0:
            container.seek(first + math.floor(start / stream.time_base), stream=stream)
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        last = None
        for frame in container.decode(stream):
            if frame.pts is None:
                raise Unusable("its frames have no times")
            begin = float((frame.pts - first) * stream.time_base)
            if last is not None:
                yield last, begin
            last, end = frame, begin + 1 / rate
        if last is not None:
            yield last, end


def seconds(path: Path) -> float:
    """Returns the duration that the file states, or else that its packets cover."""
    with _opened(path) as (container, stream):
        if stream.duration:
            return float(stream.duration * stream.time_base)
        if container.duration:
            return container.duration / 1e6
        times = [
            packet.pts + (packet.duration or 0)
            for packet in container.demux(stream)
            if packet.pts is not None
        ]
        return float((max(times) - min(times)) * stream.time_base) if times else 0.0


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """Opens a video; whatever goes wrong inside says why the file is unusable."""
    import av
    import av.error

    if not path.is_file():
        raise Unusable("there is no such file")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise Unusable("it has no video stream")
            yield container, container.streams.video[0]
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise Unusable(f"it cannot be decoded ({error})") from error
