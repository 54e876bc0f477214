"""Distribution matching in a process of eight CPU devices: what a mesh trains, and what one does.

`python -m tests.training.meshed_players MESH ADVERSARIAL ...` prints a line of JSON for each
ADVERSARIAL, the weight of the critic: how far the parameters of each player are apart after a step,
in parts of how far the step moved them, and how far the losses are apart, in parts of themselves.
"""

import dataclasses
import json
import math
import re
import sys
import tempfile
from pathlib import Path

import jax

jax.config.update("jax_num_cpu_devices", 8)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from jvdm.attention import CachedCausal  # noqa: E402
from jvdm.parallel import mesh_of, split_batch  # noqa: E402
from jvdm.samplers import AutoregressiveMatrix, CachedMatrix, Unguided  # noqa: E402
from jvdm.samplers.solvers import Consistency  # noqa: E402
from jvdm.training.distribution_matching import DistributionMatching  # noqa: E402
from jvdm.training.objective import GivenBatch  # noqa: E402
from jvdm.training.optimizer import Optimizer  # noqa: E402
from jvdm.training.setup import compile_step, given, make_state, transform_of  # noqa: E402
from jvdm.training.step import make_step  # noqa: E402
from tests.generate.nano import SYSTEM, write_weights  # noqa: E402

SHAPE = (8, 3, 2, 4, 4)


def stepped(mesh, teacher, weight):
    """Returns the players before and after a step, and the losses."""
    sampling = dataclasses.replace(
        SYSTEM.sampling,
        matrix=CachedMatrix(AutoregressiveMatrix(1), lookback=2),
        solver=Consistency(),
        guidance=Unguided(),
        policy=CachedCausal(2, rotary="read"),
    )
    student = dataclasses.replace(SYSTEM, sampling=sampling)
    objective = DistributionMatching(student, teacher, score_updates=2, adversarial=weight)
    optimizer = Optimizer(kind="adamw", learning_rate=1e-3, warmup_steps=1)
    transform = transform_of(objective, optimizer, 10)
    state = make_state(objective, transform, 0, mesh, given(objective, Path(teacher)))
    before = jax.tree.map(np.asarray, state.params)
    tokens = jnp.asarray(SYSTEM.text.read(("a red ball",) * SHAPE[0])[0])
    films = jax.random.normal(jax.random.key(0), SHAPE)
    batch = split_batch({"latents": films, "tokens": tokens}, mesh)
    source = GivenBatch(batch)
    step = make_step(objective, source, transform, SHAPE[0], 0.9)
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
    compiled, _ = compile_step(objective, step, shapes, batch, mesh)
    state, _, metrics = compiled(state, batch)
    names = ("loss", "score_loss", "unfooled", "critic_loss")
    losses = {name: float(metrics[name]) for name in names if name in metrics}
    return before, jax.tree.map(np.asarray, state.params), losses


def main(description, weights):
    """Prints how far a mesh is from one device, for each weight of the critic."""
    size = math.prod(int(part) for part in re.findall(r"\d+", description))
    meshes = [("data=1", 1), (description, size)]
    with tempfile.TemporaryDirectory() as folder:
        teacher = str(write_weights(Path(folder)))
        for weight in weights:
            found = [
                stepped(mesh_of(named, jax.devices()[:count]), teacher, weight)
                for named, count in meshes
            ]
            print(json.dumps(apart(*found)))


def apart(one, other):
    """Returns the differences of parameters, as parts of a step, and of losses."""
    (before, after, losses), (_, meshed, others) = one, other
    found = {}
    for name in sorted(set(after) - {"text"}):
        moved, off = (
            math.sqrt(sum(float(np.sum(np.square(a - b))) for a, b in zip(*leaves, strict=True)))
            for leaves in (
                (jax.tree.leaves(after[name]), jax.tree.leaves(before[name])),
                (jax.tree.leaves(after[name]), jax.tree.leaves(meshed[name])),
            )
        )
        found |= {name: off / moved, f"{name} moved": moved}
    return found | {name: abs(losses[name] - others[name]) / losses[name] for name in losses}


if __name__ == "__main__":
    main(sys.argv[1], [float(weight) for weight in sys.argv[2:]])
