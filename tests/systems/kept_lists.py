"""AdaSpa row by row: what lists that are kept recall beside lists that every row searches for.

python -m tests.systems.kept_lists [WEIGHTS] [SIDE] [BLOCK] [STEPS] [DENSITY]

Prints for each row what its calls did, and the recall, a mean over layers, heads and all queries,
of a run that searches twice and of one that searches in every row.
"""

import dataclasses
import sys
from typing import Any

import jvdm
from jvdm.attention import AdaSpa, Policy, summary
from jvdm.pattern_search import with_policy
from jvdm.pipeline import Request
from tests.systems.pattern_tables import UNSEEN
from tests.systems.skipped_blocks import SAMPLED


@dataclasses.dataclass(frozen=True)
class Searching(AdaSpa):
    """Searches in every row after the dense ones."""

    def in_phase(self, name: str) -> Policy:
        """Returns what the rows of a phase do."""
        return super().in_phase("again" if name == "reuse" else name)


def recalls(pipe: jvdm.Pipeline, policy: AdaSpa, request: Request) -> list[float]:
    """Returns the recall of every row."""
    searching = with_policy(pipe, policy)
    run, sums = searching.start(searching.prepare(request)), [0.0]
    for row in range(run.job.matrix.num_rows):
        run = searching.advance(run, 1)
        sums.append(summary(run.state.carry)["recall"] * (row + 1))
    return [after - before for before, after in zip(sums, sums[1:], strict=False)]


def measure(
    weights: str = "nano",
    side: int = 128,
    block: int = 4,
    steps: int = 16,
    density: float = 0.25,
) -> None:
    """Prints the table."""
    pipe = jvdm.load(weights, progress=False)
    seeds = tuple(range(1000, 1000 + len(UNSEEN)))
    asked: Any = {"height": side, "width": side, "num_inference_steps": steps}
    request = Request(prompt=tuple(UNSEEN), seed=seeds, **asked)
    rules: Any = {"block": block, "dense_layers": 0, "recall_queries": SAMPLED}
    twice, always = (kind(density, **rules) for kind in (AdaSpa, Searching))
    does = [name for name, length in twice.phases(steps) for _ in range(length)]
    print("row  does      kept  searched")
    rows = zip(does, recalls(pipe, twice, request), recalls(pipe, always, request), strict=True)
    for row, (name, kept, searched) in enumerate(rows):
        print(f"{row:3}  {name:7} {kept:6.3f}  {searched:8.3f}", flush=True)


if __name__ == "__main__":
    kinds: Any = (str, int, int, int, float)
    measure(*(kind(text) for kind, text in zip(kinds, sys.argv[1:], strict=False)))
