"""Turns the metrics of single steps into lines, without making the device wait.

A thread fetches the metrics of an interval while the main thread queues the
steps of the next one; the main thread is never more than one interval ahead.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np

from jvdm.arrays import Array
from jvdm.errors import NumericsError
from jvdm.training.sinks import Line, Sink

PEAK_FLOPS = {
    # Dense bfloat16 operations per second of one device, from the data sheets.
    "NVIDIA B200": 2250e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "Tesla T4": 65e12,
    "TPU v6": 918e12,
    "TPU v5p": 459e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
}
"""Peak by the beginning of `device_kind`; the first that fits counts."""


def peak_flops(device_kind: str) -> float | None:
    """Returns the peak of one device in operations per second, None when unknown."""
    kinds = (peak for kind, peak in PEAK_FLOPS.items() if device_kind.startswith(kind))
    return next(kinds, None)


class Progress:
    """Collects metrics step by step and writes a line per interval.

    Args:
        sinks: Where lines go.
        batch_size: Clips per step.
        flops_per_step: Operations of one step, for the utilisation.
        device_kinds: `device_kind` of the devices that share the step.
        max_skipped: Non-finite steps in a row after which the run stops.
    """

    def __init__(
        self,
        sinks: tuple[Sink, ...],
        *,
        batch_size: int,
        flops_per_step: float,
        device_kinds: Sequence[str],
        max_skipped: int,
    ) -> None:
        peak = peak_flops(device_kinds[0])
        self._sinks = sinks
        self._batch_size = batch_size
        self._seconds_at_peak = flops_per_step / (peak * len(device_kinds)) if peak else None
        self._max_skipped = max_skipped
        self._open: list[dict[str, Array]] = []
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._pending: Future | None = None
        self._mark = time.perf_counter()
        self._steps, self._seconds = 0, 0.0
        self.latest: Line = {}

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self._thread.shutdown()
        for sink in self._sinks:
            sink.close()

    def restart_clock(self) -> None:
        """Leaves everything before now out of the speed."""
        self._mark = time.perf_counter()

    def collect(self, metrics: dict[str, Array]) -> None:
        """Keeps the metrics of one step, on the device."""
        self._open.append(metrics)

    def close_interval(self, step: int) -> None:
        """Ends the interval at `step`; waits until the one before it is written.

        Raises:
            NumericsError: If too many steps in a row were not finite.
        """
        self._finish()
        if self._open:
            self._pending = self._thread.submit(self._write, step, self._open)
        self._open = []

    @contextlib.contextmanager
    def paused(self, step: int) -> Iterator[None]:
        """Writes everything up to `step`, and does not count the time inside.

        Raises:
            NumericsError: If too many steps in a row were not finite.
        """
        self.close_interval(step)
        self._finish()
        yield
        self.restart_clock()

    def _finish(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _write(self, step: int, on_device: list[dict[str, Array]]) -> None:
        metrics = jax.device_get(on_device)
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        self._steps += len(metrics)
        self._seconds += seconds
        self.latest = {
            "step": step,
            "steps": len(metrics),
            **_summary(metrics),
            **self._speed(len(metrics), seconds),
        }
        for sink in self._sinks:
            sink.write(self.latest)
        self._stop_if_diverged()

    def overall(self) -> Line:
        """Returns the last loss, the seconds and speed of all steps; empty without a step."""
        if not self._steps:
            return {}
        speed = self._speed(self._steps, self._seconds)
        return {"loss": self.latest.get("loss"), "seconds": self._seconds, **speed}

    def _speed(self, steps: int, seconds: float) -> dict[str, float]:
        seconds_per_step = max(seconds, 1e-9) / max(steps, 1)
        speed = {
            "seconds_per_step": seconds_per_step,
            "clips_per_second": self._batch_size / seconds_per_step,
        }
        if self._seconds_at_peak:
            speed["mfu"] = self._seconds_at_peak / seconds_per_step
        return speed

    def _stop_if_diverged(self) -> None:
        in_row = self.latest.get("skipped_in_row", 0)
        if in_row >= self._max_skipped:
            raise NumericsError(
                f"{in_row:.0f} steps in a row up to step {self.latest['step']} had a "
                "non-finite loss or gradient",
                f"the run stops after {self._max_skipped}; the last checkpoint is kept",
                "lower the learning rate, or look for non-finite values in the data",
            )


def _summary(metrics: list[dict[str, np.ndarray]]) -> Line:
    line: Line = {}
    for name in metrics[0]:
        values = np.asarray([float(entry[name]) for entry in metrics])
        if name.startswith("skipped"):
            line[name] = float(values.max())
            continue
        finite = values[np.isfinite(values)]
        line[name] = float(finite.mean()) if finite.size else float("nan")
    return line
