"""Where the numbers of a training run go: a JSON-lines file, TensorBoard, a bar."""

import contextlib
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jvdm.files import write_text
from jvdm.parallel.processes import writes

Line = dict[str, Any]
"""One line of metrics: `step` and numbers by name."""

Write = Callable[[Line], None]
Sink = contextlib.AbstractContextManager[Write]
"""Gives a function that takes lines of metrics; ends the output."""


@contextlib.contextmanager
def json_lines(path: Path, start: int) -> Iterator[Write]:
    """Appends one JSON object per line to `path` at once; non-finite numbers become null.

    Lines after step `start` are dropped first, so that the file of a resumed run
    reads like that of a run that was never interrupted.
    """
    old = path.read_text().splitlines() if path.exists() else []
    write_text(path, "".join(f"{line}\n" for line in old if _step(line) <= start))
    with path.open("a") as file:

        def write(line: Line) -> None:
            infinite = (k for k, v in line.items() if isinstance(v, float) and not math.isfinite(v))
            print(json.dumps(line | dict.fromkeys(infinite)), file=file, flush=True)

        yield write


@contextlib.contextmanager
def tensorboard(folder: Path, start: int) -> Iterator[Write]:
    """Writes numbers as TensorBoard events; those of an interrupted run after `start` are dropped.

    Says so and writes nothing when the package `tensorboardX` is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        print("tensorboardX is not installed; metrics go to metrics.jsonl only", file=sys.stderr)
        yield lambda line: None
        return
    writer = SummaryWriter(str(folder), purge_step=start + 1 if start else None)
    events: Any = getattr(writer.file_writer, "event_writer", None)

    def write(line: Line) -> None:
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float):
                writer.add_scalar(name, value, line["step"])

    try:
        yield write
    finally:
        try:
            writer.close()
        except OSError:  # a full disk: it would be tried again at exit, and fail there too
            events._worker.stop()
            events._closed = True
            raise


@contextlib.contextmanager
def bar(start: int, num_steps: int) -> Iterator[Write]:
    """Shows loss, clips per second and utilisation: a bar on a terminal, lines elsewhere."""
    from tqdm.auto import tqdm

    with tqdm(total=num_steps, initial=start, unit="step", desc="train", disable=None) as shown:

        def write(line: Line) -> None:
            text = f"loss {line.get('loss', math.nan):.4f}  clips/s {line['clips_per_second']:.1f}"
            text += f"  mfu {100 * line['mfu']:.1f} %" if "mfu" in line else ""
            text += f"  skipped {line['skipped']:.0f}" if line.get("skipped") else ""
            if shown.disable:
                print(f"step {line['step']}/{num_steps}  {text}", file=sys.stderr, flush=True)
            else:
                shown.set_postfix_str(text, refresh=False)
                shown.update(line["step"] - shown.n)

        yield write


@dataclasses.dataclass(frozen=True)
class Heartbeat:
    """A small JSON file that says what the run does and when it last did it."""

    path: Path

    def note(self, phase: str, step: int) -> None:
        """Replaces the file by one with `phase`, `step`, time and process id, in one process."""
        if not writes():
            return
        content = {"phase": phase, "step": step, "time": time.time(), "pid": os.getpid()}
        write_text(self.path, json.dumps(content) + "\n")


def open_sinks(workdir: Path, heartbeat: Heartbeat, start: int, num_steps: int) -> tuple[Sink, ...]:
    """Returns all sinks of a run that begins after step `start`; none in other processes."""
    if not writes():
        return ()
    return (
        contextlib.nullcontext(lambda line: heartbeat.note("train", line["step"])),
        json_lines(workdir / "metrics.jsonl", start),
        bar(start, num_steps),
        tensorboard(workdir / "tensorboard", start),
    )


def _step(line: str) -> float:
    """Returns the step of a line; infinity if a killed process did not finish the line."""
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf
