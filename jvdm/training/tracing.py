"""Where the time of a training step goes: a trace of steady steps, and its table."""

import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jvdm.arrays import PyTree
from jvdm.files import write_text
from jvdm.parallel.processes import writes

_AFTER = 10  # steps; the first ones are not typical
_OUTER = ("while", "call", "conditional")  # what happens inside them has events of its own
_SUMMARIES = ("Steps", "XLA Modules", "XLA TraceMe", "Framework Ops", "Framework Name Scope")
_NOISE = re.compile(
    r"rematted_computation|(jit|jvp|transpose|vmap|remat|checkpoint|pjit)\(|checkpoint|\)"
)
_PLAIN = ("", "while", "body", "closed_call", "main")


class Tracer:
    """Records a profiler trace of `steps` steady steps of process 0 into `workdir/profile`.

    `table.txt` beside it says which parts of the step took how long. A context manager: a
    trace that is still open at the end is closed.
    """

    def __init__(self, workdir: Path, steps: int) -> None:
        self.workdir, self._steps, self._open = workdir, steps if writes() else 0, False

    def __enter__(self) -> "Tracer":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._open:
            jax.profiler.stop_trace()

    def before_step(self, number: int, state: PyTree, program: Any) -> None:
        """Starts the trace before a step of this process, or ends it and shows its table.

        Args:
            number: From 1.
            state: What the last step made.
            program: The compiled step; its text says which part an operation belongs to.
        """
        if not self._steps or number not in (_AFTER, _AFTER + self._steps):
            return
        jax.block_until_ready(state)
        folder, self._open = self.workdir / "profile", not self._open
        if self._open:
            jax.profiler.start_trace(str(folder))
            return
        jax.profiler.stop_trace()
        newest = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
        shown = table(times(newest, scopes(program.as_text())), self._steps)
        write_text(folder / "table.txt", shown + "\n")
        print(shown, file=sys.stderr)


def scopes(program: str) -> dict[str, str]:
    """Returns the part of the model that each operation of a compiled program belongs to."""
    found = re.findall(r'^ *(?:ROOT )?%?([\w.-]+) = .*op_name="([^"]*)"', program, re.MULTILINE)
    return {operation: part_of(name) for operation, name in found}


def part_of(name: str) -> str:
    """Returns modules from the outside in, without transformations and the last operation."""
    inner = [_NOISE.sub("", part) for part in name.partition(";")[0].split("/")[1:-1]]
    part = "/".join(part for part in inner if part not in _PLAIN) or "other"
    return f"{part}, backward" if "transpose(" in name else part


def times(trace: Path, parts: Mapping[str, str]) -> dict[str, tuple[float, int]]:
    """Returns seconds and events of every part in a trace, the longest first.

    What the program does not name, such as copies, stands by its own name.
    """
    seconds: Counter[str] = Counter()
    events: Counter[str] = Counter()
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        for line in plane.lines:
            if line.name in _SUMMARIES:
                continue
            for event in line.events:
                operation = dict(event.stats).get("hlo_op")
                if operation is None and not plane.name.startswith("/device:"):
                    continue
                if str(operation).startswith(_OUTER):
                    continue
                name = parts.get(str(operation), str(operation or event.name))
                seconds[name] += event.duration_ns / 1e9
                events[name] += 1
    return {name: (spent, events[name]) for name, spent in seconds.most_common()}


def table(found: Mapping[str, tuple[float, int]], steps: int, rows: int = 30) -> str:
    """Returns the longest parts with milliseconds and operations of a step, and their share."""
    total = sum(spent for spent, _ in found.values()) or 1.0
    lines = [f"{'ms a step':>10} {'share':>6} {'events':>7}  part"]
    for name, (spent, events) in list(found.items())[:rows]:
        share = spent / total
        lines.append(f"{1e3 * spent / steps:10.3f} {share:6.1%} {events / steps:7.0f}  {name}")
    return "\n".join([*lines, f"{1e3 * total / steps:10.3f} {'all':>6}"])
