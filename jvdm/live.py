"""A film that is written while it is made, and steered by lines of text while it plays.

    prompt a small blue box rests    from the next chunk on this is to be seen
    act push left                    from the next chunk on this is done (--system nfd)
    rewind 2s                        the next chunk is the one of so long ago, as far as --keep
    pause / resume                   no chunk is made meanwhile
    save FILE                        --resume FILE goes on from there
    stop                             the film ends here

A line is answered when it is carried out, before the chunk that shows it. One that cannot be
changes nothing.
"""

import collections
import contextlib
import functools
import os
import queue
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jvdm import outputs
from jvdm.errors import ConfigError, JvdmError
from jvdm.options import Resolved, stream_record
from jvdm.pipeline import Pipeline
from jvdm.pipeline.foresight import Foresight
from jvdm.pipeline.session import Session, command_of
from jvdm.pipeline.streaming import StreamJob
from jvdm.settings import seconds_of
from jvdm.stages import measuring, stage
from jvdm.stopping import StopRequest

WAITING = 512  # lines that wait for the next chunk; a sender of more waits too
LONGEST = 65_536  # bytes of a line


class Playout:
    """When chunks came, and when somebody who watches needed them.

    The video is shown from the first chunk on, at its frame rate; where a chunk comes too late it
    stands still, and what follows is needed so much later.

    Args:
        fps: Frames per second of the video.
        began: When it was asked for, in seconds of any clock.
    """

    def __init__(self, fps: float, began: float) -> None:
        self.fps, self.began = fps, began
        self.frames = self.chunks = self.late = 0
        self.first = self.stalled = self.longest = 0.0
        self._last = self._needed = began
        self._took: collections.deque[float] = collections.deque(maxlen=1000)

    def arrived(self, now: float, frames: int) -> None:
        """Notes a chunk of so many frames."""
        if self.chunks == 0:
            self.first, self._needed = now - self.began, now
        else:
            self._took.append(now - self._last)
            self.longest = max(self.longest, now - self._last)
        if now > self._needed:
            self.late, self.stalled = self.late + 1, self.stalled + now - self._needed
            self._needed = now
        self._needed += frames / self.fps
        self._last, self.chunks, self.frames = now, self.chunks + 1, self.frames + frames

    def paused(self, seconds: float) -> None:
        """Notes that nothing was to be made for so long."""
        self._last, self._needed = self._last + seconds, self._needed + seconds
        self.began += seconds if self.chunks == 0 else 0.0

    def as_data(self) -> dict[str, int | float]:
        """Returns counts, and times in seconds; those of chunks are of the last thousand."""
        took = sorted(self._took)
        after = sum(took) * (self.chunks - 1) / len(took) if took else 0.0
        mean = self.frames / self.chunks if self.chunks else 0.0
        return {
            "frames": self.frames,
            "chunks": self.chunks,
            "first_frame": self.first,
            "chunk_median": statistics.median(took) if took else 0.0,
            "chunk_p95": took[int(0.95 * (len(took) - 1))] if took else 0.0,
            "chunk_longest": self.longest,
            "frames_per_second": (self.chunks - 1) * mean / after if after else 0.0,
            "late_chunks": self.late,
            "stalled": self.stalled,
        }


class Script:
    """Lines for a stream: some at their times, others when they come.

    Args:
        at: Lines by the time of the film, frames that were taken back included.
        fps: Frames per second.
        lines: Lines that come while it plays; they are read in a thread of their own.
        last: Frames before the last chunk; None is without an end.

    Raises:
        ConfigError: If a time or a line of `at` is none, or comes after the last chunk begins.
    """

    def __init__(
        self,
        at: Mapping[str, str],
        fps: float,
        lines: Iterable[str] = (),
        last: int | None = None,
    ) -> None:
        timed = sorted((round(seconds_of("at", when) * fps), said) for when, said in at.items())
        lines_at = [(frame, line) for frame, said in timed for line in said.splitlines() or [""]]
        for _, line in lines_at:
            check_line(line)
        longer = any(line.split()[0] == "rewind" for _, line in lines_at)
        if last is not None and lines_at and lines_at[-1][0] > last and not longer:
            frame, line = lines_at[-1]
            what, why = f"at has {line!r:.80} at {frame / fps:g} s", "a chunk begins with a line"
            why = f"{why}, and the last one begins at {last / fps:.3g} s"
            raise ConfigError(what, why, "let it come earlier, or make a longer film")
        self._timed = collections.deque(lines_at)
        self._typed: queue.Queue[str] = queue.Queue(WAITING)
        self._reader = threading.Thread(target=self._read, args=(lines,), daemon=True)
        self._reader.start()

    def _read(self, lines: Iterable[str]) -> None:
        for line in lines:
            if line.strip():
                self._typed.put(line.strip())

    @property
    def timed(self) -> tuple[str, ...]:
        """The lines whose times have not come yet."""
        return tuple(line for _, line in self._timed)

    def due(self, frames: int) -> Iterator[str]:
        """Yields the lines that are to be carried out after so many frames."""
        while (line := self.wait(0.0, frames)) is not None:
            yield line

    def wait(self, seconds: float, frames: int = -1) -> str | None:
        """Returns the next line that is due after so many frames or comes within so long."""
        if self._timed and self._timed[0][0] <= frames:
            return self._timed.popleft()[1]
        try:
            return self._typed.get(seconds > 0, seconds)
        except queue.Empty:
            return None

    def left(self) -> Iterator[str]:
        """Yields the lines that nothing came of."""
        yield from self.due(self._timed[-1][0] if self._timed else -1)

    @property
    def ended(self) -> bool:
        """Whether nobody can say anything more."""
        return not self._reader.is_alive() and self._typed.empty()


def check_line(line: str) -> None:
    """Refuses what is no line for a stream.

    Raises:
        ConfigError: It says what lines there are.
    """
    if len(line.encode()) > LONGEST:
        what, why = f"{line!r:.40}... is no command", f"a line has {LONGEST:,} bytes at most"
        raise ConfigError(what, why, "write a shorter one")
    verb, _, rest = line.strip().partition(" ")
    alone = verb in ("pause", "resume", "stop") and not rest.strip()
    if alone or (verb == "save" and rest.strip()):
        return
    try:
        command_of(line)
    except ConfigError as error:
        why = "a line is: prompt TEXT, act NAME, rewind 2s, pause, resume, save FILE, or stop"
        raise ConfigError(error.what, why, "write it as one of them") from error


class Play:
    """A session that is played: its chunks, as lines and signals let them come.

    Args:
        script: Lines.
        playout: What is noted of the chunks.
        stopped: Whether somebody asked for an end.
        save: Called with the session after every chunk, and with a file by the line `save`.
    """

    def __init__(
        self,
        script: Script,
        playout: Playout,
        stopped: Callable[[], bool] = lambda: False,
        save: Callable[..., None] = lambda session, path=None: None,
    ) -> None:
        self.script, self.playout, self.stopped, self.save = script, playout, stopped, save
        self.told: dict[str, str] = {}
        """Lines that changed the film, by their times: with them, it is made again."""
        self.ahead: dict[str, int] = {}
        """What was made before it was asked for, where a system does so (`Foresight`)."""
        self._ended = self._paused = False

    def chunks(self, session: Session) -> Iterator[np.ndarray]:
        """Yields the frames of every chunk; what was yielded is saved, if it is to be."""
        with contextlib.ExitStack() as closing:
            foresight = None
            if session.job.ahead:
                foresight = Foresight(session.pipe, session.job)
                closing.callback(foresight.close)
            while not session.done and not self.stopped():
                for line in self.script.due(self.playout.frames):
                    session = self._after(session, line)
                if self._ended:
                    break
                session, frames = session.step(foresight=foresight)
                self.playout.arrived(time.perf_counter(), len(frames))
                if foresight is not None:
                    foresight.follow(session.run)
                    self.ahead = foresight.as_data()
                yield frames
                self.save(session)
        if self.told and not session.done:
            self._note("stop")
        for line in self.script.left():
            outputs.say(f"{line!r:.80} was not carried out: the film has ended")

    def _after(self, session: Session, line: str) -> Session:
        """Returns the session after a line, and answers it."""
        try:
            check_line(line)
            verb, _, rest = line.partition(" ")
            if verb == "stop":
                self._ended = True
            elif verb == "pause":
                return self._pause(session)
            elif verb == "save":
                self.save(session, Path(rest.strip()).expanduser())
            elif verb == "resume":
                raise ConfigError("nothing is paused", "", "")
            else:
                session = session.after(command_of(line))
        except JvdmError as error:
            said = "; ".join(filter(None, (error.what, error.why, error.fix)))
            outputs.say(f"{line!r:.80} was not carried out: {said}")
            return session
        now = self.playout.frames / self.playout.fps
        outputs.say(f"{line!r:.80} is carried out at {now:.2f} s of the film", *session.unknown)
        if verb in ("prompt", "act", "rewind"):
            self._note(line)
        return session

    def _note(self, line: str) -> None:
        now = f"{max(self.playout.frames, 0.01) / self.playout.fps:.6f}s"  # times are above 0
        self.told[now] = "\n".join(filter(None, (self.told.get(now), line)))

    def _pause(self, session: Session) -> Session:
        """Carries out what comes until `resume` or an end.

        Raises:
            ConfigError: If it is paused.
        """
        if self._paused:
            raise ConfigError("the film is paused already", "", "say resume")
        outputs.say("paused; resume goes on")
        began, self._paused = time.perf_counter(), True
        while not self.stopped() and not self._ended:
            line = self.script.wait(0.1, self.playout.frames)
            if line is None and self.script.ended:
                outputs.say("the film goes on: nobody can say resume, standard input has ended")
                break
            if line is not None and line.strip() == "resume":
                break
            if line is not None:
                session = self._after(session, line)
        self._paused = False
        self.playout.paused(time.perf_counter() - began)
        return session


def film(
    resolved: Resolved,
    pipe: Pipeline,
    job: StreamJob,
    begin: Callable[[], Session],
    *,
    name: str,
    script: Script | None = None,
    save: Callable[..., None] = lambda session, path=None: None,
) -> dict[str, Any]:
    """Writes a film while it is made; Ctrl-C ends it after a chunk.

    Args:
        resolved: Options.
        pipe: The loaded system.
        job: What is made.
        begin: Makes the session before its first chunk.
        name: Stem of the files.
        script: Lines that steer it; None is none.
        save: Called with the session after every chunk, and with a file by the line `save`.

    Returns:
        `videos`: its record; `seconds`: time of each stage; `delivery`: what `Playout` notes.
    """
    options, fps = resolved.options, job.clip.settings.fps
    outputs.say(*resolved.notes, *job.clip.warnings)
    stop = StopRequest("the video ends after this chunk", "--duration says where it ends")
    play = Play(
        script or Script({}, fps), Playout(fps, time.perf_counter()), lambda: stop.requested, save
    )

    def chunks() -> Iterator[np.ndarray]:
        with stage("stream", total=job.num_frames or 0, unit="frame") as bar:
            for frames in play.chunks(begin()):
                stop.state = f"after {play.playout.frames} frames; they are saved"
                yield frames
                bar.update(len(frames))

    with (
        stop,
        outputs.reserved(options.output, name, {0: job.clip.seeds[0]}) as files,
        measuring(show=True) as stages,
    ):
        with stop.later():
            record_of = functools.partial(stream_record, options, pipe, job, play)
            record = outputs.save_stream(files[0], chunks(), fps, record_of)
        stop.check()
    seconds = {"load": pipe.load_seconds, **stages.seconds}
    held = sum(job.held) * (1 + job.kept + job.ahead)
    delivery = {**play.playout.as_data(), "held_bytes": held, **play.ahead}
    return {"videos": [record.as_data()], "seconds": seconds, "delivery": delivery}


def lines_of(descriptor: int) -> Iterator[str]:
    """Yields the lines that come through a file descriptor, until its end.

    A terminal of another job is left alone: reading it would stop this one.
    """
    if os.isatty(descriptor) and os.tcgetpgrp(descriptor) != os.getpgrp():
        return
    waiting = b""
    while part := os.read(descriptor, 4096):  # no buffer of Python's: it is locked while one waits
        *whole, waiting = (waiting + part).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)
        waiting = waiting[: LONGEST + 1]  # what is longer is refused
    yield waiting.decode(errors="replace")


def text(delivery: Mapping[str, Any]) -> str:
    """Says how a stream came."""
    return (
        f"first frame after {delivery['first_frame']:.2f} s, "
        f"then {delivery['frames_per_second']:.1f} frames a second; "
        f"{delivery['late_chunks']} of {delivery['chunks']} chunks late, "
        f"{delivery['stalled']:.2f} s of standing still; "
        f"a chunk takes {delivery['chunk_median']:.3f} s (95 %: {delivery['chunk_p95']:.3f} s); "
        f"{delivery['held_bytes'] / 1e6:.1f} MB are held"
    ) + _ahead_text(delivery)


def _ahead_text(delivery: Mapping[str, Any]) -> str:
    if "chunks_ahead" not in delivery:
        return ""
    return (
        f"; {delivery['chunks_ahead']} chunks ({delivery['calls_ahead']} calls of the network) "
        f"were made before they were asked for, {delivery['chunks_dropped']} in vain"
    )
