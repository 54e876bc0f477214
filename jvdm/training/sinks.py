"""Where the numbers of a training run go: a JSON-lines file, TensorBoard, a bar."""

import importlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

Line = dict[str, Any]
"""One line of metrics: `step` and numbers by name."""


@runtime_checkable
class Sink(Protocol):
    """Something that takes lines of metrics."""

    def write(self, line: Line) -> None:
        """Takes one line."""
        ...

    def close(self) -> None:
        """Ends the output."""
        ...


class JsonLines:
    """Appends one JSON object per line to `path`; non-finite numbers become null.

    Lines after step `start` are dropped first, so that the file of a resumed run
    reads like that of a run that was never interrupted.
    """

    def __init__(self, path: Path, start: int) -> None:
        kept = [line for line in _lines(path) if line["step"] <= start]
        temporary = path.with_suffix(".partial")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(temporary, path)
        self._file = path.open("a")

    def write(self, line: Line) -> None:
        """Appends `line`; it is in the file when this returns."""
        finite = {name: _finite_or_none(value) for name, value in line.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoard:
    """Writes scalars as TensorBoard events with the `tensorboard` package alone.

    Raises:
        ImportError: If `tensorboard` is not installed.
    """

    def __init__(self, folder: Path, start: int) -> None:
        event = importlib.import_module("tensorboard.compat.proto.event_pb2")
        summary = importlib.import_module("tensorboard.compat.proto.summary_pb2")
        files = importlib.import_module("tensorboard.summary.writer.event_file_writer")
        self._event, self._summary = event.Event, summary.Summary
        self._writer = files.EventFileWriter(str(folder))
        if start:
            # Tells TensorBoard to drop what an interrupted run wrote after this step.
            begin = event.SessionLog(status=event.SessionLog.START)
            again = event.Event(wall_time=time.time(), step=start + 1, session_log=begin)
            self._writer.add_event(again)

    def write(self, line: Line) -> None:
        """Adds one scalar per number of `line`."""
        values = [
            self._summary.Value(tag=name, simple_value=float(value))
            for name, value in line.items()
            if name != "step" and isinstance(value, int | float)
        ]
        summary = self._summary(value=values)
        self._writer.add_event(
            self._event(wall_time=time.time(), step=line["step"], summary=summary)
        )

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


class Bar:
    """Shows progress: a bar on a terminal, a line per entry elsewhere."""

    def __init__(self, start: int, num_steps: int) -> None:
        self._num_steps = num_steps
        self._bar = None
        if sys.stderr.isatty():
            from tqdm.auto import tqdm

            self._bar = tqdm(total=num_steps, initial=start, unit="step", desc="train")

    def write(self, line: Line) -> None:
        """Shows loss, clips per second and, where known, utilisation."""
        shown = {
            "loss": f"{line.get('loss', math.nan):.4f}",
            "clips/s": f"{line['clips_per_second']:.1f}",
        }
        if "mfu" in line:
            shown["mfu"] = f"{100 * line['mfu']:.1f} %"
        if line.get("skipped"):
            shown["skipped"] = f"{line['skipped']:.0f}"
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(line["step"] - self._bar.n)
        else:
            text = "  ".join(f"{name} {value}" for name, value in shown.items())
            print(f"step {line['step']}/{self._num_steps}  {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()


class Heartbeat:
    """A small JSON file that says what the run does and when it last did it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, line: Line) -> None:
        """Notes that the run has reached the step of `line`."""
        self.note("train", line["step"])

    def note(self, phase: str, step: int) -> None:
        """Replaces the file by one with `phase`, `step`, time and process id."""
        content = {"phase": phase, "step": step, "time": time.time(), "pid": os.getpid()}
        temporary = self._path.with_suffix(".partial")
        temporary.write_text(json.dumps(content) + "\n")
        os.replace(temporary, self._path)

    def close(self) -> None:
        """Leaves the last note."""


def open_sinks(workdir: Path, start: int, num_steps: int) -> tuple[Sink, ...]:
    """Opens every sink that works here; says so once when TensorBoard is missing."""
    sinks: list[Sink] = [JsonLines(workdir / "metrics.jsonl", start), Bar(start, num_steps)]
    try:
        sinks.append(TensorBoard(workdir / "tensorboard", start))
    except ImportError:
        print("tensorboard is not installed; metrics go to metrics.jsonl only", file=sys.stderr)
    return tuple(sinks)


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lines(path: Path) -> list[Line]:
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue  # a line that a killed process did not finish
    return [line for line in lines if isinstance(line, dict) and "step" in line]
