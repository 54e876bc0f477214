"""Video files as clips: the frames shown at given instants, at one size."""

from pathlib import Path

import numpy as np

from jvdm import media
from jvdm.arrays import UInt8
from jvdm.errors import ConfigError
from jvdm.video import fit


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
        with media.opened(path) as film:
            for frame, count in film.shown(fps, start):
                picture = fit(film.picture(frame)[None], *size)[0]
                chosen += [picture] * min(count, num_frames - len(chosen))
                if len(chosen) == num_frames:
                    return np.stack(chosen)
    except ConfigError as error:
        raise Unusable(f"frame {len(chosen)} from {start:.2f} s on: {_reason(error)}") from error
    raise Unusable(
        f"only {len(chosen)} of {num_frames} frames from {start:.2f} s on can be decoded"
    )


def seconds(path: Path) -> float:
    """Returns the duration of a film.

    Raises:
        Unusable: If it cannot be decoded.
    """
    try:
        with media.opened(path) as film:
            return film.seconds()
    except ConfigError as error:
        raise Unusable(_reason(error)) from error


def _reason(error: ConfigError) -> str:
    """Returns why a file cannot be used, without its name."""
    if hasattr(error.__cause__, "strerror"):
        return f"it cannot be decoded ({error.why})"
    return error.why or "there is no such file"
