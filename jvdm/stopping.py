"""SIGTERM and Ctrl-C: heard at once, answered as soon as nothing is lost."""

import atexit
import contextlib
import functools
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, as_completed, wait
from typing import Any

from jvdm.errors import Interrupted, Preempted

_AGAIN_SECONDS = 0.02  # until a signal comes again where what was raised for it was lost
_WAKES_SECONDS = 0.5  # how long the main thread waits before it looks for a signal again
_ERRORS = {signal.SIGTERM: Preempted, signal.SIGINT: Interrupted}


def ask() -> None:
    """Asks this process to stop, as SIGTERM does, unless a signal has come already."""
    if not StopRequest.asked:
        os.kill(os.getpid(), signal.SIGTERM)


class Work(Future):
    """What a thread does. Who waits for it in the main thread wakes to hear signals.

    The system may hand a signal to any thread, and Python's handler runs in the main one, which it
    does not wake.
    """

    def result(self, timeout: float | None = None) -> Any:
        """Returns what the work returned; raises what it raised."""
        while timeout is None and not self.done():
            wait((self,), _WAKES_SECONDS)
        return super().result(timeout)


class StopRequest:
    """While entered, SIGTERM and Ctrl-C end the run with `Preempted` or `Interrupted`.

    Inside `later()` the first one only sets `requested`, and says so: the main thread may sit
    in a device or a compiler, where Python runs no handlers, so a thread of its own listens.
    A signal that a library swallows, or turns into an error of its own, is not lost: `check`, and
    the end, raise it again. One that arrives where Python prints what is raised and goes on (a
    finaliser, a weak reference's callback, the garbage collector's) comes again after it.
    SIGTERM may come twice, from a scheduler and from another process of the run: it counts once.
    Handlers that were there before come back at the end. A signal that the process ignores, as
    Ctrl-C in a background job, stays ignored; outside the main thread nothing is installed.

    Args:
        saves: What is said at once inside `later()`.
        fix: What to do after the run was stopped.
        heard: Called in a thread of its own when a signal has come, to pass it on.
    """

    asked = False
    """Whether a signal has come since the outermost of these was entered."""
    at_once = False
    """Whether a process that was stopped ends without Python's finalisation, in which what several
    processes share may crash or wait for ever."""
    _entered = 0

    def __init__(
        self,
        saves: str = "the state is saved after this step",
        fix: str = "start the same command again to continue",
        heard: Callable[[], None] = lambda: None,
    ) -> None:
        self.saves, self.fix, self.heard = saves, fix, heard
        self.state = "before it began"
        """What an error says of the run if it ends now."""
        self._first: signal.Signals | None = None
        self._later = self._interrupted = False
        self._restore = contextlib.ExitStack()
        self._working: list[Future] = []

    @property
    def requested(self) -> bool:
        """Whether somebody asked the run to stop."""
        return self._first is not None

    @contextlib.contextmanager
    def later(self) -> Iterator[None]:
        """Lets what happens inside look at `requested` itself; a second Ctrl-C ends it."""
        self._later = True
        try:
            yield
        finally:
            self._later = self.requested  # what is said of a signal may still be on its way

    def check(self, elsewhere: bool = False) -> None:
        """Ends the run if somebody asked for it, here or `elsewhere`, where it was SIGTERM."""
        self._first = self._first or (signal.SIGTERM if elsewhere else None)
        if self._first is None:
            return
        name = "Ctrl-C" if self._first == signal.SIGINT else self._first.name
        error = _ERRORS[self._first](f"stopped by {name} {self.state}", fix=self.fix)
        atexit.register(_leave, self._working, error.exit_code)
        raise error

    def background(self, work: Callable[[], Any]) -> Work:
        """Runs `work` in a thread, so that the main thread can hear signals meanwhile.

        A compilation cannot be interrupted and may take a minute, and a process that is
        finalised while it runs may crash: such a process is left at once.
        """
        future = Work()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - raised again by `result()`
                future.set_exception(error)

        self._working.append(future)
        threading.Thread(target=run, daemon=True).start()
        return future

    def side_by_side(self, *works: Callable[[], Any]) -> list[Any]:
        """Returns what each of `works` returns, each in a thread; raises the first error."""
        working = [self.background(work) for work in works]
        for work in as_completed(working):
            work.result()
        return [work.result() for work in working]

    def __enter__(self) -> "StopRequest":
        StopRequest.asked = StopRequest.asked and StopRequest._entered > 0
        StopRequest._entered += 1
        if threading.current_thread() is threading.main_thread():
            self._restore.callback(setattr, sys, "unraisablehook", sys.unraisablehook)
            sys.unraisablehook = functools.partial(self._lost, sys.unraisablehook)
            ears, mouth = socket.socketpair()
            mouth.setblocking(False)
            old = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
            for number in _ERRORS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    before = signal.signal(number, self._handle)
                    self._restore.callback(signal.signal, number, before)
            listener = threading.Thread(target=self._listen, args=(ears,), daemon=True)
            for undo in (ears.close, listener.join, mouth.close):
                self._restore.callback(undo)
            self._restore.callback(signal.set_wakeup_fd, old)
            listener.start()
        return self

    def __exit__(self, kind: type | None, error: Any, trace: Any) -> None:
        self._later = True  # nothing is interrupted while handlers come back
        StopRequest._entered -= 1
        self._restore.close()
        if error is not None:
            atexit.register(_leave, self._working, getattr(error, "exit_code", 1))
        if self._interrupted or kind in (KeyboardInterrupt, None):
            self.check()

    def _handle(self, number: int, frame: Any) -> None:
        again, self._first = self._first, self._first or signal.Signals(number)
        first, StopRequest.asked = not StopRequest.asked, True
        impatient = number == signal.SIGINT and (not self._later or again == number)
        if impatient or (first and not self._later):
            self._interrupted = True
            raise KeyboardInterrupt

    def _lost(self, otherwise: Callable[[Any], None], raised: Any) -> None:
        """What Python calls where it cannot raise: the signal comes again, and is heard then."""
        if self._first is None or raised.exc_type is not KeyboardInterrupt:
            otherwise(raised)
            return
        StopRequest.asked = False
        again = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), self._first))
        self._restore.callback(again.cancel)
        again.start()

    def _listen(self, ears: socket.socket) -> None:
        while heard := ears.recv(1):  # empty when the other end is closed
            if heard[0] in map(int, _ERRORS):
                said = f"{self.saves}; Ctrl-C again ends the run at once"
                print(said if self._later else "stopping", file=sys.stderr, flush=True)
                self.heard()


def _leave(working: list[Future], code: int) -> None:
    """Ends the process at once if something still runs in it."""
    if all(future.done() for future in working) and not StopRequest.at_once:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
