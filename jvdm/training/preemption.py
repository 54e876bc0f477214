"""SIGTERM as a flag that the training loop reads, instead of a death."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from jvdm.errors import Preempted

Result = TypeVar("Result")


class StopRequest:
    """While entered, SIGTERM sets `requested`; the handler before it comes back after.

    Outside the main thread Python allows no handlers, so nothing is installed.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._before: Any = None

    @property
    def requested(self) -> bool:
        """Whether somebody asked the run to stop."""
        return self._event.is_set()

    def check_finished(self, done: int, num_steps: int) -> None:
        """Raises `Preempted` if a run that has saved `done` steps wants more."""
        if done < num_steps:
            what = f"stopped by SIGTERM at step {done} of {num_steps}; the state is saved"
            raise Preempted(what, fix="start the same command again to continue")

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, lambda *_: self._event.set())
        return self

    def __exit__(self, *_) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)


class Background:
    """Runs `work` in a thread, so that the main thread can hear signals meanwhile."""

    def __init__(self, work: Callable[[], Result]) -> None:
        self._work = work
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:  # noqa: BLE001 - raised again in `result`
            self._error = error

    def result(self, stop: StopRequest) -> Any:
        """Returns what `work` returned; leaves the process if a stop is requested.

        A compilation cannot be interrupted and may take a minute, and a process
        that ends while it runs may crash on its way out. Nothing is unsaved at
        that moment, so the process ends at once, with the exit code of `Preempted`.
        """
        while self._thread.is_alive():
            self._thread.join(timeout=0.1)
            if stop.requested:
                print("stopped while preparing; nothing was unsaved", file=sys.stderr, flush=True)
                sys.stdout.flush()
                os._exit(Preempted.exit_code)
        if self._error is not None:
            raise self._error
        return self._result
