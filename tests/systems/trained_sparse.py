"""What training gives a policy of few blocks: the loss before and after equal steps of equal clips.

python -m tests.systems.trained_sparse [STEPS]

Trains the shipped nano model on with full attention, with VSA, and with VSA without its attention
among means, and prints the loss on clips of split `test`, of equal noise and levels, before and
after, and how far it is above that of full attention, with the standard error of the difference.
"""

import dataclasses
import sys
import time
from typing import Any

import jax
import numpy as np

from jvdm.attention import Dense, Draft
from jvdm.configs import nano, vsa
from jvdm.parallel import data_mesh
from jvdm.training import setup
from jvdm.training.step import make_step
from tests.systems.equal_steps import CLIPS, DRAWS, HELD_OUT, Ring, clips, held_out


def policies() -> dict[str, Any]:
    """Returns policies by name."""
    rule = vsa.POLICY
    fine = Draft(
        density=rule.density, block=rule.block, per=rule.per, dense_rows=0.0, dense_layers=0
    )
    return {"full attention": Dense(), "vsa": rule, "vsa without means": fine}


def main(steps: int = 400) -> None:
    """Prints two rows for each policy."""
    experiment: Any = vsa.config()
    seen, test = clips("train", CLIPS), clips("test", HELD_OUT)
    bases = {}
    for name, policy in policies().items():
        model = experiment.objective.system.model.clone(policy=policy)
        system = dataclasses.replace(experiment.objective.system, model=model)
        objective = dataclasses.replace(experiment.objective, system=system)
        transform = setup.transform_of(objective, experiment.optimizer, steps)
        state: Any = setup.make_state(objective, transform, 0, data_mesh(1), nano.VAE_WEIGHTS)
        run = jax.jit(make_step(objective, Ring(seen), transform, 16, 0.99).run, donate_argnums=1)
        for when in ("before", "after"):
            began = time.perf_counter()
            for _ in range(steps if when == "after" else 0):
                state, _, _ = run({}, state, seen)
            losses = held_out(objective, state.params, test)
            base = bases.setdefault(when, losses)
            more, error = losses - base, (losses - base).std() / np.sqrt(DRAWS)
            print(
                f"{name:<20} {when:<7} {losses.mean():.4f} {more.mean():+.4f} (+-{error:.4f})"
                f"  {time.perf_counter() - began:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
