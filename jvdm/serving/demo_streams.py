"""Streams of the demo: films that grow while they are watched, and how they are made.

A film is made chunk by chunk in the thread that owns the device (`Jobs.stream`) and written as
fragments of an MP4 by a thread of its own. It is made no further than a little ahead of where it
is watched, so that another prompt is seen soon and the device has time for others.
"""

import collections
import dataclasses
import functools
import operator
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jvdm.arrays import PyTree, instances
from jvdm.attention import Dense, Tally, summary
from jvdm.errors import ConfigError, Preempted
from jvdm.media import LIVE_WRITERS
from jvdm.pipeline import Job, Pipeline, Request
from jvdm.pipeline.session import Prompt, Session
from jvdm.pipeline.streaming import HostFrames, StreamJob, begin, ids_of
from jvdm.samplers import times
from jvdm.serving.feed import told
from jvdm.serving.tasks import ENDED, State, error_data
from jvdm.settings import with_numbers
from jvdm.stages import measuring

AHEAD_S = 2.0
"""Seconds of film that are made before they are watched."""
LOST_S = 20.0
"""Who has not asked for so long is gone; what was made for them ends."""
SLACK_S = 60.0
"""Seconds that a film may be watched later than it plays, in all, while others wait for a place."""
ROWS, CHUNKS, NOTES = 48, 120, 8
"""Last rows, chunks and warnings that are shown."""
FILM = "stream.mp4"


class Watched:
    """Something that is made while somebody watches it.

    Args:
        folder: Where its files are; it is there.

    Attributes:
        id: Its name, which nobody guesses.
        state: How far it is.
        error: What, why and fix, where it failed.
        ahead: What was asked for before it and has not ended.
        make_room: Called before a run, so that compiled programs do not fill memory.
        others_wait: Whether others wait for its place in memory.
    """

    def __init__(self, folder: Path) -> None:
        self.id, self.folder = folder.name, folder
        self.state: State = "queued"
        self.error: Mapping[str, str] | None = None
        self.changed = threading.Condition()
        self.stopped, self.ahead = False, 0
        self.make_room: Callable[[Job], None] = lambda job: None
        self.others_wait: Callable[[], bool] = lambda: False
        self._feed: Any = None
        self._asked = time.monotonic()

    def steps(self) -> Iterator[Any]:
        """Makes it, one step after another, in the thread that owns the device."""
        raise NotImplementedError

    def take(self, steps: Iterator[Any]) -> None:
        """Takes what was made, in a thread of its own, as long as somebody watches."""
        for _ in steps:
            if self.lost:
                self.cancel()

    def follow(self, feed: Any) -> None:
        """Begins to take its steps, of the feed that `Jobs.stream` gives."""
        self._feed = feed
        if self.stopped:
            feed.cancel()
        threading.Thread(target=self._follow, name=f"jvdm-{self.id[:8]}", daemon=True).start()

    def asked(self) -> None:
        """Notes that somebody watches it."""
        self._asked = time.monotonic()

    @property
    def idle_s(self) -> float:
        """Seconds for which nobody asked."""
        return time.monotonic() - self._asked

    @property
    def lost(self) -> bool:
        """Whether nobody watches it any more."""
        return self.idle_s > LOST_S

    @property
    def ended(self) -> bool:
        """Whether nothing more is made."""
        return self.state in ENDED

    def cancel(self) -> None:
        """Ends it: at once if it waits, else after the row or chunk that is made."""
        with self.changed:
            self.stopped = True
            self.changed.notify_all()
        if self._feed is not None:
            self._feed.cancel()

    def check(self, *_: Any) -> None:
        """Raises `Preempted` if it was cancelled; between two rows."""
        if self.stopped:
            raise Preempted("it was cancelled", "somebody asked for it", "ask for it again")

    def _follow(self) -> None:
        error = None
        try:
            self.take(iter(self._feed))
        except OSError as raised:
            why = raised.strerror or type(raised).__name__
            error = ConfigError("its files cannot be written", why, "free some space")
        except Exception as raised:
            error = told(raised)
        self._feed.cancel()
        with self.changed:
            if not self.stopped:
                self.error = None if error is None else error_data(error)
            self.state = "cancelled" if self.stopped else "failed" if error else "done"
            self.changed.notify_all()


class LiveStream(Watched):
    """A stream that is watched while it is made, and told otherwise meanwhile.

    Args:
        pipe: The loaded system.
        job: What is made; it has an end.
        folder: Where the film is.

    Attributes:
        speed: Frames a second of the last chunk that was computed, without pauses.
    """

    def __init__(self, pipe: Pipeline, job: StreamJob, folder: Path) -> None:
        super().__init__(folder)
        self.pipe, self.job, self.path = pipe, job, folder / FILM
        self.fps = float(job.clip.settings.fps)
        self.frames = self.row = 0
        self.told = [(entry.frame, entry.prompt) for entry in job.told]
        self.warnings = collections.deque(job.clip.warnings, maxlen=NOTES)
        self.rows: collections.deque[dict[str, Any]] = collections.deque(maxlen=ROWS)
        self.density: collections.deque[dict[str, Any]] = collections.deque(maxlen=CHUNKS)
        self.speed: float | None = None
        self._next: Prompt | None = None
        self._played = 0.0

    def tell(self, prompt: str) -> None:
        """Tells the stream another prompt, from its next chunk on; of several the last.

        Raises:
            ConfigError: If it is none, or the stream has ended.
        """
        _, unknown = ids_of(self.job.clip, prompt)
        with self.changed:
            if self.ended or self.stopped:
                raise ConfigError("the stream has ended", "nothing more is made", "start another")
            self._next = Prompt(prompt)
            self.warnings += unknown

    def played(self, seconds: float | None) -> None:
        """Notes where the film is watched; None asks for all of it as fast as it comes."""
        with self.changed:
            self._played = float("inf") if seconds is None else seconds
            self.changed.notify_all()

    def steps(self) -> Iterator[HostFrames]:
        """Makes the first clip, which may be cancelled between two rows, and then the chunks."""
        self.check()
        self.state = "running"
        clip = self.job.clip
        self.make_room(clip)
        levels = np.asarray(times(clip.matrix))
        with measuring() as stages:
            run = begin(self.pipe, self.job, functools.partial(self._first_row, levels))
        self._note_density(stages.ran.get("attention", {}))
        session, cycles, before = Session(self.pipe, self.job, run), 0, _tallies(run.state.run)
        levels = np.asarray(times(self.job.rows.cycle))
        while not session.done:
            with self.changed:
                commands = () if self._next is None else (self._next,)
                self._next, calls = None, session.run.ready is None
                self.told += [(session.frames, command.text) for command in commands]
            began = time.perf_counter()
            session, frames = session.step(*commands)
            took = time.perf_counter() - began
            after = _tallies(session.run.state.run)
            with self.changed:
                self.frames = session.frames
                if calls:
                    self.speed = len(frames) / took
                    self._note_rows(levels[1:], cycles * self.job.rows.block)
                    cycles += 1
                    self._note_density(summary(_difference(after, before)))
            before = after
            yield frames

    def take(self, steps: Iterator[HostFrames]) -> None:
        """Writes the film as its chunks come."""
        LIVE_WRITERS[self.path.suffix](self.path, self._paced(steps), self.fps)

    def film(self, start: int, most: int) -> bytes:
        """Returns what there is of the film, from a byte on, at most so many."""
        if not self.path.exists():
            return b""
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(most)

    def as_data(self) -> dict[str, Any]:
        """Returns what the page shows, as JSON data."""
        with self.changed:
            return {
                "id": self.id,
                "state": self.state,
                "error": self.error,
                "ahead": self.ahead,
                "warnings": list(self.warnings),
                "row": self.row,
                "of": self.job.clip.matrix.num_rows,
                "frames": self.frames,
                "num_frames": self.job.num_frames,
                "fps": self.fps,
                "speed": None if self.speed is None else round(self.speed, 2),
                "seed": int(self.job.clip.seeds[0]),
                "bytes": self.path.stat().st_size if self.path.exists() else 0,
                "told": [{"frame": frame, "prompt": prompt} for frame, prompt in self.told],
                "rows": list(self.rows),
                "density": list(self.density),
            }

    def _paced(self, steps: Iterator[HostFrames]) -> Iterator[np.ndarray]:
        """Yields frames, no further than `AHEAD_S` before where they are watched.

        Raises:
            ConfigError: If the film is watched much later than it plays, and others wait.
        """
        made, paused = 0, 0.0
        for chunk in steps:
            made += len(chunk)
            yield from chunk
            began = time.monotonic()
            with self.changed:
                while made > (self._played + AHEAD_S) * self.fps and not self.stopped:
                    late = paused + time.monotonic() - began - made / self.fps
                    if late > SLACK_S and self.others_wait():
                        what = f"the film was watched {late:.0f} s later than it plays"
                        raise ConfigError(what, "others wait for its place", "start it again")
                    if self.lost:
                        self.stopped = True
                    self.changed.wait(0.25)
            paused += time.monotonic() - began
            if self.stopped:
                return

    def _first_row(self, levels: np.ndarray, row: int, latents: Any) -> None:
        with self.changed:
            self._note_rows(levels[row + 1 : row + 2], 0)
        self.check()

    def _note_rows(self, levels: np.ndarray, first: int) -> None:
        """Notes the levels that frames have after rows, from a latent frame on."""
        for level in levels:
            self.row += 1
            shown = [round(float(t), 3) for t in level]
            self.rows.append({"row": self.row, "frame": first, "levels": shown})

    def _note_density(self, attention: Mapping[str, Any]) -> None:
        """Notes the density of a chunk; of a policy that counts none nothing is said."""
        if attention:
            layers = attention["layers"]["density"]
            self.density.append({"density": attention["density"], "layers": layers})
        elif isinstance(self.job.clip.system.network.policy, Dense):
            self.density.append({"density": 1.0, "layers": [1.0]})


def as_streamed(pipe: Pipeline, request: Request) -> tuple[Pipeline, tuple[str, ...]]:
    """Returns a pipeline whose attention is dense in the first rows of every frame.

    Of a stream there are no first rows. What a sparse policy does in those of a clip, it does
    above the noise level at which they end.

    Returns:
        The pipeline, and what the user should know.
    """
    sampling = with_numbers(pipe.system.sampling, request)
    policy: Any = sampling.policy
    if not getattr(policy, "dense_rows", 0) or isinstance(sampling.levels, Mapping):
        return pipe, ()
    levels: Any = sampling.levels
    grid = np.asarray(levels())
    above = round(float(grid[round(policy.dense_rows * (len(grid) - 1))]), 4)
    policy = dataclasses.replace(policy, dense_rows=0.0, dense_above=above)
    sampling = dataclasses.replace(pipe.system.sampling, policy=policy)
    system = dataclasses.replace(pipe.system, sampling=sampling)
    note = f"attention is dense above the noise level {above:g}, which the first rows were for"
    return dataclasses.replace(pipe, system=system), (note,)


def _tallies(run: PyTree) -> list[Tally]:
    """Returns what every layer counted so far, on the host."""
    return jax.device_get(instances(run.carry, Tally))


def _difference(after: list[Tally], before: list[Tally]) -> list[Tally]:
    """Returns what was counted meanwhile."""
    pairs = zip(after, before, strict=True)
    return [jax.tree.map(operator.sub, new, old) for new, old in pairs]
