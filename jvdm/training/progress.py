"""Turns the metrics of single steps into lines, without making the device wait.

A thread fetches the metrics of an interval while the main thread queues the
steps of the next one; the main thread is never more than one interval ahead.
"""

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from jvdm.arrays import Array
from jvdm.errors import NumericsError
from jvdm.training.sinks import Line, Sink

PEAK_FLOPS = {
    2250e12: ("NVIDIA B200",),
    989e12: ("NVIDIA H200", "NVIDIA H100 80GB HBM3", "NVIDIA GH200 480GB"),
    835e12: ("NVIDIA H100 NVL",),
    756e12: ("NVIDIA H100 PCIe",),
    918e12: ("TPU v6 lite", "TPU v6e"),
    459e12: ("TPU v5", "TPU v5p"),
    362e12: ("NVIDIA L40S",),
    312e12: tuple(
        f"NVIDIA A100{kind}"
        for kind in ("-SXM4-40GB", "-SXM4-80GB", "-PCIE-40GB", " 80GB PCIe", "-PCIE-80GB")
    ),
    275e12: ("TPU v4",),
    197e12: ("TPU v5 lite", "TPU v5e"),
    181e12: ("NVIDIA L40",),
    121e12: ("NVIDIA L4",),
    65e12: ("Tesla T4",),
}
"""Dense bfloat16 operations per second of a device, from the data sheets, and the whole
`device_kind` of such devices."""


def peak_flops(device_kind: str) -> float | None:
    """Returns the peak of one device in operations per second, None when unknown."""
    return next((peak for peak, kinds in PEAK_FLOPS.items() if device_kind in kinds), None)


class Progress(contextlib.ExitStack):
    """Collects metrics step by step and writes a line per interval.

    Args:
        sinks: Where lines go; they end with this context.
        batch_size: Clips per step.
        flops_per_step: Operations of one step, for the utilisation.
        device_kinds: `device_kind` of the devices that share the step.
        max_skipped: Non-finite steps in a row after which the run stops.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        *,
        batch_size: int,
        flops_per_step: float,
        device_kinds: Sequence[str],
        max_skipped: int,
    ) -> None:
        super().__init__()
        peaks = {kind: peak_flops(kind) for kind in device_kinds}
        unknown = [kind for kind, peak in peaks.items() if peak is None]
        if unknown and unknown != ["cpu"]:
            said = f"the peak of {', '.join(unknown)} is not known: utilisation (mfu) is not shown"
            print(said, file=sys.stderr)
        total = sum(peaks[kind] or math.inf for kind in device_kinds)
        self._seconds_at_peak = flops_per_step / total
        self._batch_size, self._max_skipped = batch_size, max_skipped
        self._writes = [self.enter_context(sink) for sink in sinks]
        self._thread = self.enter_context(ThreadPoolExecutor(max_workers=1))
        self._open: list[dict[str, Array]] = []
        self._pending = self._thread.submit(dict)
        self._steps, self._seconds = 0, 0.0
        self.latest: Line = {}
        self.restart_clock()

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
        self._pending.result()
        self._pending = self._thread.submit(self._write, step, self._open)
        self._open = []

    @contextlib.contextmanager
    def paused(self, step: int) -> Iterator[None]:
        """Writes everything up to `step`, and does not count the time inside."""
        self.close_interval(step)
        self._pending.result()
        yield
        self.restart_clock()

    def overall(self) -> Line:
        """Returns the last loss, the seconds and speed of all steps; empty without a step."""
        speed = self._speed(self._steps, self._seconds)
        found = {"loss": self.latest.get("loss"), "seconds": self._seconds, **speed}
        return found if self._steps else {}

    def _write(self, step: int, on_device: list[dict[str, Array]]) -> None:
        if not on_device:
            return
        metrics = jax.device_get(on_device)
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        self._steps += len(metrics)
        self._seconds += seconds
        means = {name: _mean(name, [float(each[name]) for each in metrics]) for name in metrics[0]}
        speed = self._speed(len(metrics), seconds)
        self.latest = {"step": step, "steps": len(metrics), **means, **speed}
        for write in self._writes:
            write(self.latest)
        in_row = means.get("skipped_in_row", 0)
        if in_row >= self._max_skipped:
            raise NumericsError(
                f"{in_row:.0f} steps in a row up to step {step} had a non-finite loss or gradient",
                f"the run stops after {self._max_skipped}; the last checkpoint is kept",
                "lower the learning rate, or look for non-finite values in the data",
            )

    def _speed(self, steps: int, seconds: float) -> dict[str, float]:
        per_step = max(seconds, 1e-9) / max(steps, 1)
        speed = {"seconds_per_step": per_step, "clips_per_second": self._batch_size / per_step}
        return speed | ({"mfu": self._seconds_at_peak / per_step} if self._seconds_at_peak else {})


def _mean(name: str, values: list[float]) -> float:
    """Returns the mean of the finite values, or the highest count of skipped steps."""
    if name.startswith("skipped"):
        return max(values)
    return float(np.mean([value for value in values if np.isfinite(value)] or [np.nan]))
