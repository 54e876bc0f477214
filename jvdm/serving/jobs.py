"""One loaded pipeline and all who wait for it.

A worker thread owns the device. Clients take turns; jobs of equal shape and settings that wait
together are made in one call. Every job has a folder, with what was asked for, its videos, records
and latents, so that a stopped server goes on where it was. A stream has its turn chunk by chunk,
as far as its reader follows.

A run can be stopped between two rows. A program that compiles cannot, nor the search for the noise
of a video that is inverted.
"""

import contextlib
import dataclasses
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from jvdm import outputs
from jvdm.errors import ConfigError, JvdmError
from jvdm.files import probe_writable, unwritable
from jvdm.machine import as_when_idle, free_device_memory, free_memory
from jvdm.pipeline import Job, Pipeline, Request
from jvdm.samplers.sampler import shared_rows
from jvdm.serving import tasks
from jvdm.serving.feed import Feed, told
from jvdm.serving.limits import Limits
from jvdm.serving.line import Line
from jvdm.serving.making import Maker
from jvdm.serving.tasks import Status, Task
from jvdm.settings import PICTURE, settings_of
from jvdm.stages import measuring


class Busy(JvdmError):
    """Too many jobs wait; `RETRY_S` says when to try again."""


class Closing(JvdmError):
    """The server stops and takes nothing on."""


class UnknownJob(JvdmError):
    """There is no such job, or it is not kept any more."""


class Cancelled(JvdmError):
    """Somebody asked for the end of a job."""


RETRY_S = 5
"""Seconds after which who was refused should try again."""


class Jobs:
    """The queue before one pipeline; every method may be called from any thread.

    Args:
        pipe: The loaded system.
        folder: Where results are kept; what is left there from before is taken up.
        limits: What is taken on.
        loading: What was loaded, by the names of `jvdm generate`, for the records.

    Raises:
        ConfigError: If nothing can be written there, or the system makes more than pictures.

    Attributes:
        seconds: Time of each stage, of all jobs so far.
        calls: How often so many videos were made in one call.
        ended: Jobs and streams of this process, by how they ended.
    """

    def __init__(
        self,
        pipe: Pipeline,
        folder: Path,
        limits: Limits | None = None,
        loading: Mapping[str, Any] | None = None,
    ) -> None:
        self.limits = (limits or Limits()).validated()
        self._maker = Maker(pipe, dict(loading or {}), self.limits.max_sizes)
        self.pipe, self.folder = pipe, folder.absolute()
        probe_writable(self.folder)
        self._free = free_memory(), free_device_memory(jax.local_devices()[0])
        self._reading = threading.Lock()
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[int] = Counter()
        self.ended: Counter[str] = Counter()
        self._changed = threading.Condition(threading.RLock())
        self._line: Line[Task | Feed] = Line()
        self._tasks: dict[str, Task] = {}  # who has ended comes behind who ended before
        self._feeds: dict[str, Feed] = {}  # streams in memory
        self._closing: float | None = None  # until when there is time
        self._stopped = False
        with self._changed:
            for path in tasks.folders(self.folder):
                self._take_up(path)
        self._worker = threading.Thread(target=self._work, name="jvdm-device", daemon=True)
        self._worker.start()

    def submit(
        self, client: str, settings: Mapping[str, Any], pictures: Mapping[str, bytes] | None = None
    ) -> str:
        """Takes on a job; it is checked, and nothing is computed.

        Args:
            client: Whose turn it takes; each has an equal share.
            settings: Of `jvdm.settings`, less pictures.
            pictures: Content of files by setting: image, last_image, video, channel.

        Returns:
            The name of the job.

        Raises:
            JvdmError: If a value cannot be used; `TooMuch`, `Busy` or `Closing`.
        """
        tasks.check_names({**settings, **(pictures or {})})
        for name in settings_of(PICTURE):
            if settings.get(name) is not None:
                raise ConfigError(f"{name} is the name of a file", "its content is needed", "")
        request = self.limits.check(Request(**settings), self.pipe.manifest)
        self._check_room(client)
        folder = self.folder / secrets.token_hex(16)
        try:
            folder.mkdir(mode=0o700)
            files = tasks.write_pictures(folder, pictures or {})
            request = dataclasses.replace(request, **files)
            job = self._prepared(request, files)
            request = dataclasses.replace(request, seed=job.seeds[0])
            created = time.time()
            tasks.write_request(folder, client, created, request)
            task = self._waiting(request, job, folder, client, created)
            with self._changed:
                self._check_room(client)  # others may have come while this one was checked
                self._admit(task)
        except JvdmError as error:
            tasks.remove(folder)
            raise tasks.without(folder, error) from error
        except OSError as error:
            tasks.remove(folder)
            raise tasks.without(folder, unwritable(folder, error)) from error
        return folder.name

    def stream(self, client: str, chunks: Iterator[Any]) -> Feed:
        """Takes on a stream.

        Args:
            client: Whose turn it takes.
            chunks: Makes the next chunk when it is asked, in the thread that owns the device;
                check what it is asked for before.

        Returns:
            What to iterate over; leaving the loop ends the stream.

        Raises:
            Busy: If too many wait.
            Closing: If the server stops.
        """
        with self._changed:
            self._check_room(client)
            feed = Feed(client, chunks, self._changed)
            self._line.add(client, feed)
            self._changed.notify_all()
        return feed

    def status(self, name: str) -> Status:
        """Says how far a job is.

        Raises:
            UnknownJob: If there is none of this name.
        """
        with self._changed:
            task = self.task(name)
            return dataclasses.replace(task.status, ahead=self.ahead(task))

    def ahead(self, waiting: Task | Feed) -> int:
        """Returns how many have their turn before a job or a stream; 0 if it does not wait."""
        with self._changed:
            client = waiting.client if isinstance(waiting, Feed) else waiting.status.client
            return self._line.ahead(client, waiting) if waiting in self._line else 0

    def task(self, name: str) -> Task:
        """Returns a job, whose `outputs` are its files.

        Raises:
            UnknownJob: If there is none of this name.
        """
        with self._changed:
            if name not in self._tasks:
                what, fix = f"there is no job {name!r:.80}", "ask for the video again"
                raise UnknownJob(what, "none had this name, or it is not kept any more", fix)
            return self._tasks[name]

    def cancel(self, name: str, forget: bool = False) -> Status:
        """Ends a job: at once if it waits, after this row if it runs; latents so far are kept.

        A job that has ended stays as it is.

        Args:
            name: Name of the job.
            forget: Whether its files are removed, as soon as it has ended.

        Raises:
            UnknownJob: If there is none of this name.
        """
        with self._changed:
            task = self.task(name)
            task.forgotten = task.forgotten or forget
            if task in self._line:
                self._line.remove(task.status.client, task)
                self._end(task, "cancelled", _cancelled("while it waited"))
            elif task.ended and forget:
                self._forget(task)
            else:
                task.cancelled = True
            return task.status

    def wait(self, name: str, timeout_s: float | None = None) -> Status:
        """Waits until a job has ended, or so long, or until the worker stops.

        Raises:
            UnknownJob: If there is none of this name.
        """
        with self._changed:
            task = self.task(name)
            self._changed.wait_for(lambda: task.ended or self._stopped, timeout_s)
            return task.status

    def counts(self) -> dict[str, int]:
        """Returns how many jobs are in each state, and how many streams are in memory."""
        with self._changed:
            states = Counter(task.status.state for task in self._tasks.values())
            return {**states, "streams": len(self._feeds)}

    @property
    def alive(self) -> bool:
        """Whether the worker is there and goes on."""
        return not self._stopped and self._closing is None

    @property
    def broken(self) -> bool:
        """Whether the worker ended although nobody asked for it."""
        return self._stopped and self._closing is None

    @property
    def kept_bytes(self) -> int:
        """Size of the results that are kept."""
        with self._changed:
            return sum(task.size_bytes for task in self._tasks.values())

    def join(self) -> None:
        """Waits until the worker is done."""
        self._worker.join()

    def close(self, grace_s: float = 0.0, patience_s: float = 60.0) -> bool:
        """Stops: nothing is taken on, streams end, and what runs has so long to finish.

        What is not finished then is saved as latents, and begins again, as everything that waits,
        when `Jobs` are made of the same folder.

        Args:
            grace_s: Seconds in which what runs may finish.
            patience_s: Seconds that are waited then: a program that compiles cannot be stopped.

        Returns:
            Whether the worker is done.
        """
        with self._changed:
            deadline = time.monotonic() + grace_s
            self._closing = min(self._closing or deadline, deadline)
            self._changed.notify_all()
        self._worker.join(grace_s + patience_s)
        return not self._worker.is_alive()

    def streams_wait(self) -> bool:
        """Returns whether streams wait for a place in memory."""
        with self._changed:
            return any(isinstance(item, Feed) and item.id not in self._feeds for item in self._line)

    def when_idle(self) -> contextlib.AbstractContextManager[None]:
        """Lets a check inside count with the memory that is free when nothing runs.

        What waits for its turn does not need it before.
        """
        return as_when_idle(*self._free)

    def make_room(self, job: Job) -> None:
        """Drops compiled programs where those of a job would be too many sizes.

        To be called in the thread that owns the device: by what a stream is made of.
        """
        self._maker.make_room(job)

    def _prepared(self, request: Request, files: Mapping[str, Path]) -> Job:
        """Checks a request; of those with pictures one at a time, whose frames are in memory."""
        with self.when_idle(), self._reading if files else contextlib.nullcontext():
            for name, path in files.items():
                if path.suffix in tasks.FILM_ENDINGS and not name.endswith("image"):
                    self.limits.check_film(name, path)
            return self.pipe.prepare(request)

    def _check_room(self, client: str) -> None:
        """Refuses another job while too many wait."""
        with self._changed:
            if self._closing is not None:
                raise Closing("the server stops", "what it took on is kept", "try again later")
            everyone, own = len(self._line), self._line.count(client)
        for waiting, most, whose in (
            (own, self.limits.max_waiting_each, "of this client"),
            (everyone, self.limits.max_waiting, "of all clients"),
        ):
            if waiting >= most:
                why, fix = f"{most} is the most here", f"try again in {RETRY_S} seconds"
                raise Busy(f"{waiting} jobs {whose} wait", why, fix)

    def _waiting(
        self, request: Request, job: Job, folder: Path, client: str, created: float
    ) -> Task:
        rows, notes = shared_rows(job.matrix), job.warnings
        status = Status(folder.name, client, "queued", created, rows=rows, warnings=notes)
        return Task(request, job, folder, status)

    def _admit(self, task: Task) -> None:
        self._tasks[task.folder.name] = task
        self._line.add(task.status.client, task)
        self._tidy()
        self._changed.notify_all()

    def _take_up(self, folder: Path) -> None:
        """Takes up a job that an earlier process left: ended, or to be done."""
        try:
            status = tasks.read_status(folder)
            client, created, request = tasks.read_request(folder)
        except JvdmError as error:
            outputs.say(f"{folder} is left as it is: {error}")
            return
        if status is not None:
            size = tasks.size_bytes(folder)
            self._tasks[folder.name] = Task(request, None, folder, status, size_bytes=size)
            return
        try:
            job = self._prepared(request, {})
            self._admit(self._waiting(request, job, folder, client, created))
        except JvdmError as error:  # another model is loaded now
            task = Task(request, None, folder, Status(folder.name, client, "queued", created))
            self._tasks[folder.name] = task
            self._end(task, "failed", tasks.without(folder, error))

    def _work(self) -> None:
        """The worker: one turn after another until the end."""
        try:
            while (turn := self._next()) is not None:
                if isinstance(turn, Feed):
                    self._advance(turn)
                else:
                    self._make(turn)
        finally:
            with self._changed:
                self._stopped = True
                waiting = [item for item in self._line if isinstance(item, Feed)]
                for feed in {*self._feeds.values(), *waiting}:
                    feed.end(Closing("the server stops", "the stream ends here", "start it later"))
                self._changed.notify_all()

    def _next(self) -> list[Task] | Feed | None:
        """Waits for the next turn; None is the end."""
        with self._changed:
            while self._closing is None:
                first = self._line.take(self._due)
                if isinstance(first, Task):
                    return self._companions(first)
                if first is not None:
                    self._feeds[first.id] = first
                    return first
                self._changed.wait(1.0 if self._feeds else None)
        return None

    def _due(self, item: Task | Feed) -> bool:
        """Whether it can have its turn: a stream that has room in memory, and a reader."""
        if isinstance(item, Task):
            return True
        held = item.id in self._feeds or len(self._feeds) < self.limits.max_streams
        return item.stopped or held and item.due

    def _companions(self, first: Task) -> list[Task]:
        """Takes out of the line what is made with a job: as many videos as a power of two.

        Every number of videos is a program of its own, which has to be compiled.
        """
        shared, found, best = first.shared, [first], 1
        total = first.job.batch if first.job else 1

        def suits(item: Task | Feed) -> bool:
            return isinstance(item, Task) and item.shared == shared

        while shared is not None and total < self.limits.max_batch:
            task = self._line.take(self._due, suits)
            if not isinstance(task, Task) or task.job is None:
                break
            found.append(task)
            total += task.job.batch
            if total <= self.limits.max_batch and total & (total - 1) == 0:
                best = len(found)
        for task in reversed(found[best:]):
            self._line.add(task.status.client, task, first=True)
        for task in found[:best]:
            task.update(state="running", started=time.time())
        return found[:best]

    def _advance(self, feed: Feed) -> None:
        """Gives a stream its turn."""
        more = feed.advance()
        with self._changed:
            if more:
                self._line.add(feed.client, feed)
                return
            del self._feeds[feed.id]
            how = "failed" if feed.error else "cancelled" if feed.stopped else "done"
            self.ended[how] += 1

    def _make(self, found: list[Task]) -> None:
        """Makes the videos of jobs; if that fails, each alone, so that none fails for another."""
        failed: Exception | None = None
        with measuring() as stages:
            try:
                self._maker.make(found, self._late)
            except Exception as error:
                failed = error
        with self._changed:
            self.seconds.update(stages.seconds)
            self.calls[sum(task.job.batch for task in found if task.job)] += 1
            for task in found:
                if task.job is not None and task.status.videos == task.job.batch:
                    self._end(task, "done")
                elif task.cancelled:
                    when = f"after {task.status.row} of {task.status.rows} steps"
                    self._end(task, "cancelled", _cancelled(when))
        left = [task for task in found if not task.ended]
        if failed is not None and len(found) > 1:
            for task in left:
                self._make([task])
        with self._changed:
            for task in left if len(found) == 1 or failed is None else ():
                if failed is not None:
                    self._end(task, "failed", told(failed))
                else:  # there was no more time: it is done again by the process that comes next
                    task.update(state="queued", row=0, videos=0)

    def _late(self) -> bool:
        return self._closing is not None and time.monotonic() >= self._closing

    def _end(self, task: Task, state: tasks.State, error: JvdmError | None = None) -> None:
        """Notes how a job ended and drops what it held; the oldest results go."""
        said = None if error is None else tasks.error_data(error)
        task.update(state=state, ended=time.time(), error=said)
        task.job = None
        self.ended[state] += 1
        try:
            tasks.write_status(task)
        except JvdmError as problem:  # a full disk does not stop the server
            outputs.say(str(problem))
        task.size_bytes = tasks.size_bytes(task.folder)
        self._tasks[task.folder.name] = self._tasks.pop(task.folder.name)
        if task.forgotten:
            self._forget(task)
        self._tidy()
        self._changed.notify_all()

    def _forget(self, task: Task) -> None:
        tasks.remove(self._tasks.pop(task.folder.name).folder)

    def _tidy(self) -> None:
        """Removes the oldest results, as the limits say."""
        ended = [task for task in self._tasks.values() if task.ended]
        count, size = len(ended), sum(task.size_bytes for task in ended)
        oldest = time.time() - 3600 * self.limits.keep_hours
        for task in ended:
            large = size > 1e9 * self.limits.keep_gigabytes and count > 1
            if count <= self.limits.keep_jobs and not large and (task.status.ended or 0) > oldest:
                return
            count, size = count - 1, size - task.size_bytes
            self._forget(task)


def _cancelled(when: str) -> JvdmError:
    return Cancelled(f"the job was cancelled {when}", "somebody asked for it", "ask for it again")
