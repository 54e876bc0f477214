"""What networks reach that do not attend to everything, after equal steps of equal clips.

python -m tests.systems.equal_steps lingen [STEPS]
python -m tests.systems.equal_steps vsa [STEPS]

Trains the network of the recipe, it without each of its parts, and one with full attention, from
the same seed on the same batches, and prints the parameters, the loss on clips of split `test`, of
equal noise and levels, and how far it is above that of full attention, with the standard error of
the difference. Where the recipe goes on from shipped weights, also before a step was made.
"""

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import PyTree
from jvdm.attention import Dense, Draft
from jvdm.configs import lingen, nano, vsa
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


def clips(split: str, count: int, num_frames: int = nano.WORLD.num_frames) -> dict[str, Any]:
    """Returns latents and sentences."""
    world = dataclasses.replace(nano.WORLD, num_frames=num_frames)
    source = WorldLatents(world, nano.VAE, nano.VAE_WEIGHTS, count, 32, split)
    pool = source.start(0, None, data_mesh(1))
    return jax.tree.map(lambda leaf: leaf[0], {"latents": pool.latents, **pool.told})


def of_lingen(ours: Any) -> dict[str, Any]:
    """Returns LinGen's network with full attention, as it is, and without its parts."""
    plain = nano.config().objective.system.model

    def without(**fields: Any) -> Any:
        return ours.clone(scan=dataclasses.replace(ours.scan, **fields))

    return {
        "full attention": plain,
        "as many parameters": plain.clone(mlp_ratio=7),
        "lingen": ours,
        "without review tokens": without(review=None),
        "without windows": without(beside=False),
        "one order for all layers": without(rotary=False),
    }


def of_vsa(ours: Any) -> dict[str, Any]:
    """Returns VSA's network with full attention, as it is, and without attention among means."""
    rule = ours.policy
    fine = Draft(
        density=rule.density, block=rule.block, per=rule.per, dense_rows=0.0, dense_layers=0
    )
    return {
        "full attention": ours.clone(policy=Dense()),
        "vsa": ours,
        "vsa without means": ours.clone(policy=fine),
    }


VARIANTS = {"lingen": (lingen, of_lingen), "vsa": (vsa, of_vsa)}


def train(
    objective: Any,
    optimizer: Any,
    batch: Any,
    steps: int,
    start: Path | None = None,
    changed: Callable[[PyTree], PyTree] = lambda params: params,
    frozen: PyTree = None,
) -> PyTree:
    """Returns parameters after so many steps of 16 clips.

    Args:
        objective: What is trained.
        optimizer: Its settings.
        batch: All clips.
        steps: Of training.
        start: Weights folder that it goes on from.
        changed: Gives the parameters that are trained, of those it begins with.
        frozen: What teaches.
    """
    transform = setup.transform_of(objective, optimizer, max(steps, 1))
    given = setup.given(objective, start)
    state: Any = setup.make_state(objective, transform, 0, data_mesh(1), given)
    state = state.replace(params=changed(state.params))
    run = jax.jit(make_step(objective, Ring(batch), transform, 16, 0.99).run, donate_argnums=1)
    for _ in range(steps):
        state, _, _ = run(frozen or {}, state, batch)
    return state.params


def held_out(objective: Any, params: Any, batch: Any) -> np.ndarray:
    """Returns the loss of every draw of noise and levels."""

    def one(key: Any) -> Any:
        call = TrainCall(jnp.int32(0), key, params, {})
        return objective.loss(params, batch, call)[0]

    return np.asarray(
        jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(jax.random.key(1), DRAWS))
    )


def compared(losses: np.ndarray, base: np.ndarray) -> str:
    """Returns a mean loss, and its difference to another with the standard error over draws."""
    more = losses - base
    return f"{losses.mean():.4f} {more.mean():+.4f} (+-{more.std() / np.sqrt(DRAWS):.4f})"


def main(system: str, steps: int = 400) -> None:
    """Prints a row for each network."""
    recipe, variants = VARIANTS[system]
    experiment: Any = recipe.config()
    seen, test = clips("train", CLIPS), clips("test", HELD_OUT)
    begun, bases = experiment.start_from, {}
    for name, model in variants(experiment.objective.system.model).items():
        system_of = dataclasses.replace(experiment.objective.system, model=model)
        objective = dataclasses.replace(experiment.objective, system=system_of)
        for count in (0, steps) if begun else (steps,):
            began = time.perf_counter()
            params = train(objective, experiment.optimizer, seen, count, begun)
            losses = held_out(objective, params, test)
            size = sum(leaf.size for leaf in jax.tree.leaves(params["model"]))
            said = compared(losses, bases.setdefault(count, losses))
            taken = time.perf_counter() - began
            print(f"{name:<26} {count:>4} {size:>9,} {said}  {taken:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
