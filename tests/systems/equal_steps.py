"""What blocks reach that take the place of full attention, after equal steps of equal clips.

python -m tests.systems.equal_steps [STEPS]

Trains `nano` and `lingen`, and `lingen` without each of its parts, from the same seed on the same
batches, and prints the parameters, the loss on clips of split `test`, of equal noise and levels,
and how far it is above that of `nano`, with the standard error of the difference.
"""

import dataclasses
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.configs import lingen, nano
from jvdm.parallel import data_mesh
from jvdm.training import setup
from jvdm.training.objective import GivenBatch, TrainCall
from jvdm.training.step import make_step
from jvdm.training.world_source import WorldLatents

CLIPS, HELD_OUT, DRAWS = 1024, 256, 32


class Ring(GivenBatch):
    """A source of batches of clips that are there."""

    def draw(self, data, step, batch_size):
        picks = jax.random.randint(
            jax.random.fold_in(jax.random.key(0), step), (batch_size,), 0, CLIPS
        )
        return jax.tree.map(lambda leaf: leaf[picks], data), data


def clips(split: str, count: int) -> dict[str, Any]:
    """Returns latents and sentences."""
    source = WorldLatents(nano.WORLD, nano.VAE, nano.VAE_WEIGHTS, count, 32, split)
    pool = source.start(0, None, data_mesh(1))
    return jax.tree.map(lambda leaf: leaf[0], {"latents": pool.latents, **pool.told})


def variants() -> dict[str, Any]:
    """Returns networks by name."""
    plain, ours = (one.config().objective.system.model for one in (nano, lingen))

    def without(**fields: Any) -> Any:
        return ours.clone(scan=dataclasses.replace(ours.scan, **fields))

    return {
        "full attention (nano)": plain,
        "as many parameters": plain.clone(mlp_ratio=7),
        "lingen": ours,
        "without review tokens": without(review=None),
        "without windows": without(beside=False),
        "one order for all layers": without(rotary=False),
    }


def train(objective: Any, optimizer: Any, batch: Any, steps: int) -> Any:
    """Returns parameters after so many steps of 16 clips."""
    transform = setup.transform_of(objective, optimizer, steps)
    state = setup.make_state(objective, transform, 0, data_mesh(1))
    run = jax.jit(make_step(objective, Ring(batch), transform, 16, 0.99).run, donate_argnums=1)
    for _ in range(steps):
        state, _, _ = run({}, state, batch)
    return state.params


def held_out(objective: Any, params: Any, batch: Any) -> np.ndarray:
    """Returns the loss of every draw of noise and levels."""

    def one(key: Any) -> Any:
        call = TrainCall(jnp.int32(0), key, params, {})
        return objective.loss(params, batch, call)[0]

    return np.asarray(
        jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(jax.random.key(1), DRAWS))
    )


def main(steps: int = 400) -> None:
    """Prints a row for each network."""
    experiment = nano.config()
    seen, test = clips("train", CLIPS), clips("test", HELD_OUT)
    base = None
    for name, model in variants().items():
        began = time.perf_counter()
        system = dataclasses.replace(experiment.objective.system, model=model)
        objective = dataclasses.replace(experiment.objective, system=system)
        params = train(objective, experiment.optimizer, seen, steps)
        losses = held_out(objective, params, test)
        base = losses if base is None else base
        size = sum(leaf.size for leaf in jax.tree.leaves(params["model"]))
        more, error = losses - base, (losses - base).std() / np.sqrt(DRAWS)
        taken = time.perf_counter() - began
        print(
            f"{name:<28} {size:>9,} {losses.mean():.4f} {more.mean():+.4f} (+-{error:.4f})"
            f"  {taken:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
