"""AdaSpa's searches: what lists that are kept recall beside lists that every row searches for.

python -m tests.systems.kept_lists rows [WEIGHTS] [SIDE] [BLOCK] [STEPS] [DENSITY] [CLIPS]
python -m tests.systems.kept_lists schedules [WEIGHTS] [SIDE] [BLOCK] [STEPS] [DENSITY] [CLIPS]

`rows` prints what each row did, and the recall, a mean over layers, heads and all queries, of a run
that searches twice and of one that searches in every row. `schedules` prints, for searches at some
shares of the rows, the greatest and the mean loss of recall in a row to a run that searches in
every row, what the rows cost, a search being half of dense attention, and the PSNR of the clips to
those of dense attention; beside these, drafts whose density costs as much.
"""

import sys
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

import jvdm
from jvdm.attention import AdaSpa, Dense, Draft, Policy, summary
from jvdm.comparison import price
from jvdm.pattern_search import with_policy
from jvdm.pipeline import Request
from tests.systems.pattern_tables import UNSEEN
from tests.systems.skipped_blocks import SAMPLED

SCHEDULES: dict[str, tuple[float, ...]] = {
    "once": (),
    "at .6": (0.6,),
    "at .4 .7": (0.4, 0.7),
    "at .35 .5 .65 .8": (0.35, 0.5, 0.65, 0.8),
    "every 2nd row": tuple(np.arange(0.3125, 1, 0.125).tolist()),
    "every row": tuple(np.arange(0, 1, 1 / 64).tolist()),
}
ROWS = 0.2  # share of the rows that are dense, as the system's
SEARCH = 0.5  # cost of a search in one of dense attention: its scores alone


def made(
    pipe: jvdm.Pipeline, policy: Policy, request: Request
) -> tuple[list[dict[str, Any]], jnp.ndarray]:
    """Returns what the calls of every row did, and the clips."""
    running = with_policy(pipe, policy)
    run, sums = running.start(running.prepare(request)), [{"recall": 0.0, "density": 0.0}]
    for row in range(run.job.matrix.num_rows):
        run = running.advance(run, 1)
        told = summary(run.state.carry)
        sums.append({name: told[name] * (row + 1) for name in sums[0]} if told else sums[0])
    rows = [
        {name: after[name] - before[name] for name in after}
        for before, after in zip(sums, sums[1:], strict=False)
    ]
    return rows, jnp.asarray(running.decode(run.state.x))


def asked(
    weights: str, side: int, block: int, steps: int, clips: int
) -> tuple[jvdm.Pipeline, Request, dict[str, Any]]:
    """Returns the model, what is made of it, and what all policies share."""
    seeds = tuple(range(1000, 1000 + clips))
    sizes: Any = {"height": side, "width": side, "num_inference_steps": steps}
    request = Request(prompt=tuple(UNSEEN[:clips]), seed=seeds, **sizes)
    rules = {"block": block, "dense_layers": 0, "recall_queries": SAMPLED, "dense_rows": ROWS}
    return jvdm.load(weights, progress=False), request, rules


def rows(density: float, steps: int, **sizes: Any) -> None:
    """Prints the table of rows."""
    pipe, request, rules = asked(steps=steps, **sizes)
    twice, always = (
        AdaSpa(density, again=SCHEDULES[name], **rules) for name in ("at .6", "every row")
    )
    does = [name for name, length in twice.phases(steps) for _ in range(length)]
    print("row  does      kept  searched")
    both = (made(pipe, policy, request)[0] for policy in (twice, always))
    for row, (name, kept, searched) in enumerate(zip(does, *both, strict=True)):
        print(f"{row:3}  {name:7} {kept['recall']:6.3f}  {searched['recall']:8.3f}", flush=True)


def schedules(density: float, steps: int, **sizes: Any) -> None:
    """Prints the table of schedules."""
    pipe, request, rules = asked(steps=steps, **sizes)
    dense = made(pipe, Dense(), request)[1]
    always = made(pipe, AdaSpa(density, again=SCHEDULES["every row"], **rules), request)[0]
    print("searches          most  mean   cost   PSNR")

    def shown(name: str, lost: Sequence[float], cost: float, clips: jnp.ndarray) -> None:
        near = float(price(clips, dense)["psnr"])
        told = f"{np.max(lost):5.3f} {np.mean(lost):5.3f}" if lost else "    -     -"
        print(f"{name:17} {told}  {cost:5.3f}  {near:5.1f}", flush=True)

    for name, again in SCHEDULES.items():
        policy = AdaSpa(density, again=again, **rules)
        does = [kind for kind, length in policy.phases(steps) for _ in range(length)]
        found, clips = made(pipe, policy, request)
        first = does.index("search")
        lost = [
            best["recall"] - row["recall"]
            for best, row in zip(always[first + 1 :], found[first + 1 :], strict=True)
        ]
        costs = SEARCH * sum(kind in ("search", "again") for kind in does)
        cost = (costs + sum(row["density"] for row in found)) / steps
        shown(name, lost, cost, clips)
        share = (cost * steps - first - 1) / (steps - first - 1)
        same: Any = rules | {"dense_rows": (first + 1) / steps}
        draft = Draft(min(share, 1.0), **same)
        shown("  a draft", [], cost, made(pipe, draft, request)[1])


if __name__ == "__main__":
    task, *given = sys.argv[1:]
    told: Any = {"weights": "nano", "side": 128, "block": 4, "steps": 16, "density": 0.25}
    told["clips"] = len(UNSEEN)
    told |= {key: type(now)(x) for (key, now), x in zip(told.items(), given, strict=False)}
    {"rows": rows, "schedules": schedules}[task](**told)
