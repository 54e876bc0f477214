"""Films through PyAV: frames with the times at which their file shows them."""

import contextlib
import dataclasses
import math
import numbers
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jvdm.errors import ConfigError
from jvdm.media import frames
from jvdm.media.frames import MAX_PIXELS, Image

FPS_RANGE = 1.0, 240.0
DEFAULT_FPS = 24.0  # of a single frame that does not tell
_LONG = 3600  # seconds from which the frames are counted


class Undecodable(ConfigError):
    """A file that shows no film."""

    def __init__(self, path: Path, why: str) -> None:
        fix = "convert it, for example with `ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4`"
        super().__init__(f"{path} cannot be decoded as video", why, fix)


def check_fps(name: str, fps: Any) -> None:
    """Refuses rates that no film has.

    Raises:
        ConfigError: It names the setting and the range.
    """
    low, high = FPS_RANGE
    if not isinstance(fps, numbers.Real) or not low <= float(fps) <= high:
        why = f"it must be a positive number from {low:g} to {high:g}"
        raise ConfigError(f"{name} is {fps!r:.80}", why, "12 to 60 are usual")


@contextlib.contextmanager
def opened(path: str | Path, notes: list[str] | None = None) -> Iterator["Film"]:
    """Opens the film of a file; whatever goes wrong inside says why it cannot be decoded.

    Args:
        path: Any container and codec that FFmpeg knows.
        notes: What is done to its pictures is added here.

    Raises:
        ConfigError: If there is no such file.
        Undecodable: If it shows no film, or larger frames than `MAX_PIXELS`.
    """
    import av
    import av.error

    path = Path(path).expanduser()
    if not os.path.isfile(path):
        raise ConfigError(f"video {path} does not exist", "", "give the path of a file")
    try:
        with av.open(str(path)) as container:
            films = [s for s in container.streams.video if not s.disposition & _ATTACHED]
            if not films:
                raise Undecodable(path, "it has no video stream")
            film = Film(path, container, films[0], [] if notes is None else notes)
            if film.stream.width * film.stream.height * max(film.aspect, 1) > MAX_PIXELS:
                size = f"{film.stream.width}x{film.stream.height}"
                raise Undecodable(path, f"its frames of {size} have over {MAX_PIXELS:,} pixels")
            yield film
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise Undecodable(path, getattr(error, "strerror", None) or str(error)) from error


_ATTACHED = 0x400  # disposition of a cover or thumbnail: AV_DISPOSITION_ATTACHED_PIC


@dataclasses.dataclass(frozen=True, eq=False)
class Film:
    """An open file whose film is `stream`; what is done to its pictures goes to `notes`."""

    path: Path
    container: Any
    stream: Any
    notes: list[str]

    @property
    def aspect(self) -> float:
        """Width of a pixel over its height."""
        return float(self.stream.sample_aspect_ratio or 1)

    def picture(self, frame: Any) -> Image:
        """Returns a frame as RGB, upright, with square pixels.

        Raises:
            ValueError: If it is damaged.
        """
        picture = frames.rgb(frame, self.notes)
        if self.aspect != 1:
            height, width = picture.shape[:2]
            picture = frames.resized(picture, height, max(1, round(width * self.aspect)))
            frames.note(self.notes, f"pixels {self.aspect:.3g} times as wide as high were widened")
        return frames.upright(picture, frame)

    def shown(self, fps: float, start: float = 0.0) -> Iterator[tuple[Any, int]]:
        """Yields frames, each with at how many instants it is shown; there may be billions.

        Args:
            fps: Instants are `start`, `start + 1 / fps`, ... until the film ends.
            start: Seconds after the first frame.
        """
        count, tick = 0, float(self.stream.time_base)
        # Times are rounded to ticks, which are a thousandth or a hundredth of a second in some
        # containers: a frame that begins half a tick late is on time.
        late = max(1e-4, 0.51 * tick if tick <= 0.01 else 0)
        for frame, end in self._timed(start):
            until = math.ceil((end - start - late) * fps)
            if until > count:
                yield frame, until - count
                count = until

    def _timed(self, start: float) -> Iterator[tuple[Any, float]]:
        """Yields frames with the time until which each is shown, in seconds after the first."""
        stream, tick = self.stream, float(self.stream.time_base)
        counted = self.container.format.name == "avi"  # its times are those of decoding
        first = 0 if counted else stream.start_time or 0
        if start > 0 and not counted:
            self.container.seek(first + math.floor(start / tick), stream=stream)
        last, begin, length = None, 0.0, 0.0
        for number, frame in enumerate(self.container.decode(stream)):
            time = number if counted else frame.pts
            if time is None:
                raise ValueError("its frames have no times")
            now = (time - first) * tick
            if last is not None:
                yield last, now
                length = now - begin
            last, begin = frame, now
        if last is not None:
            yield last, begin + (last.duration * tick or length or 1 / DEFAULT_FPS)

    def rate(self) -> float:
        """Returns frames per second: exact where they are even, else of the usual distance.

        It reads all packets; open the film again to decode it.
        """
        stream, tick = self.stream, float(self.stream.time_base)
        times = np.sort([packet.pts for packet in self._packets()]) * tick
        if not len(times):
            raise ValueError("its frames have no times")
        mean = (len(times) - 1) / max(np.ptp(times), tick) if len(times) > 1 else DEFAULT_FPS
        for rate in (stream.average_rate, round(mean), stream.guessed_rate, mean):
            even = times[0] + np.arange(len(times)) / float(rate or math.inf)
            if np.abs(times - even).max() <= 1.01 * tick:
                return float(np.clip(rate, *FPS_RANGE))
        usual = max(float(np.median(np.diff(times))), tick)
        return float(np.clip(1 / usual, *FPS_RANGE))

    def seconds(self) -> float:
        """Returns the duration that the file states, or else that its packets cover.

        Raises:
            ValueError: If it shows fewer frames per second than `FPS_RANGE`.
        """
        stream, tick, count = self.stream, float(self.stream.time_base), self.stream.frames
        stated = (stream.duration or 0) * tick or (self.container.duration or 0) / 1e6
        if not stated or not count and stated > _LONG:
            packets = [(packet.pts, packet.duration or 0) for packet in self._packets()]
            count = len(packets)
            end, begin = max(map(sum, packets), default=0), min(packets, default=(0, 0))[0]
            stated = stated or (end - begin) * tick
        if count and stated * FPS_RANGE[0] > max(count, 2):
            raise ValueError(f"it shows {count} frames in {stated:g} s, fewer than one per second")
        return stated

    def _packets(self) -> Iterator[Any]:
        return (packet for packet in self.container.demux(self.stream) if packet.pts is not None)
