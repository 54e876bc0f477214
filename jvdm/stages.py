"""The stages of a run: how long each takes, and a progress bar for each.

`with measuring(show=True) as stages:` opens the book of a run; inside, every `stage(...)`
of this thread or task is noted there. Outside of one, nothing is noted or shown.
"""

import contextlib
import contextvars
import time
import warnings
from collections.abc import Iterator
from typing import Any


class Stages:
    """Times of a run.

    Args:
        show: Whether progress bars are drawn, on stderr or in the notebook.

    Attributes:
        seconds: Time of each stage so far. A stage that runs twice adds up; the time
            of a stage inside another counts for the inner one alone.
        ran: What sparse attention and step caches did in the last run (`jvdm.models.carry.ran`).
        arrays: How many arrays of every published component were expected, loaded and unused.
    """

    def __init__(self, show: bool = False) -> None:
        self.show = show
        self.seconds: dict[str, float] = {}
        self.ran: dict[str, Any] = {}
        self.arrays: dict[str, str] = {}
        self._inner = [0.0]  # per open stage: time of the stages inside it

    @contextlib.contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[Any]:
        """Measures what happens inside; see the function `stage`."""
        started = time.perf_counter()
        self.seconds.setdefault(name, 0.0)
        self._inner.append(0.0)
        try:
            with _bar(name, total, unit, self.show and total > 0) as bar:
                yield bar
        finally:
            spent = time.perf_counter() - started
            self.seconds[name] += spent - self._inner.pop()
            self._inner[-1] += spent


_current: contextvars.ContextVar[Stages | None] = contextvars.ContextVar("stages", default=None)


@contextlib.contextmanager
def measuring(show: bool = False) -> Iterator[Stages]:
    """Notes the stages of what happens inside; `show` draws progress bars."""
    token = _current.set(Stages(show))
    try:
        yield seen()
    finally:
        _current.reset(token)


def seen() -> Stages:
    """Returns the stages of the run that is measured here; empty ones where none is."""
    return _current.get() or Stages()


@contextlib.contextmanager
def stage(name: str, total: int = 0, unit: str = "it") -> Iterator[Any]:
    """Measures what happens inside.

    Args:
        name: Name in the table and on the bar.
        total: Number of steps; 0 draws no bar.
        unit: What a step is.

    Yields:
        An object whose `update()` is one step.
    """
    with seen().stage(name, total, unit) as bar:
        yield bar


def table(seconds: dict[str, float]) -> str:
    """Returns one line per stage, and the sum."""
    rows = [*seconds.items(), ("total", sum(seconds.values()))]
    return "\n".join(f"{name:>8}  {spent:8.2f} s" for name, spent in rows)


def _bar(name: str, total: int, unit: str, show: bool) -> Any:
    """Returns a progress bar that is a context manager too."""
    from tqdm import TqdmWarning

    with warnings.catch_warnings():
        # A notebook without widgets gets bars of text; nothing is missing.
        warnings.simplefilter("ignore", TqdmWarning)
        from tqdm.auto import tqdm

        return tqdm(desc=f"{name:>8}", total=total, unit=unit, disable=not show)
