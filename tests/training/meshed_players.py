"""Distribution matching in a process of eight CPU devices: what a mesh trains, and what one does.

`python -m tests.training.meshed_players MESH` prints a line of JSON: how far the parameters of both
players are apart after a step, and their losses, in parts of how far the step moved them.
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
from jvdm.training.setup import compile_step, make_state, transform_of  # noqa: E402
from jvdm.training.step import make_step  # noqa: E402
from tests.generate.nano import SYSTEM, write_weights  # noqa: E402

SHAPE = (8, 3, 2, 4, 4)


def stepped(mesh, teacher):
    """Returns both players before and after a step, and the losses."""
    sampling = dataclasses.replace(
        SYSTEM.sampling,
        matrix=CachedMatrix(AutoregressiveMatrix(1), lookback=2),
        solver=Consistency(),
        guidance=Unguided(),
        policy=CachedCausal(2, rotary="read"),
    )
    student = dataclasses.replace(SYSTEM, sampling=sampling)
    objective = DistributionMatching(student, teacher, score_updates=2)
    optimizer = Optimizer(kind="adamw", learning_rate=1e-3, warmup_steps=1)
    transform = transform_of(objective, optimizer, 10)
    state = make_state(objective, transform, 0, mesh, Path(teacher))
    before = jax.tree.map(np.asarray, state.params)
    tokens = jnp.asarray(SYSTEM.text.read(("a red ball",) * SHAPE[0])[0])
    batch = split_batch({"latents": jnp.zeros(SHAPE), "tokens": tokens}, mesh)
    source = GivenBatch(batch)
    step = make_step(objective, source, transform, SHAPE[0], 0.9)
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
    compiled, _ = compile_step(objective, step, shapes, batch, mesh)
    state, _, metrics = compiled(state, batch)
    losses = {name: float(metrics[name]) for name in ("loss", "score_loss")}
    return before, jax.tree.map(np.asarray, state.params), losses


def main(description):
    """Prints how far a mesh is from one device."""
    size = math.prod(int(part) for part in re.findall(r"\d+", description))
    with tempfile.TemporaryDirectory() as folder:
        teacher = str(write_weights(Path(folder)))
        found = [
            stepped(mesh_of(named, jax.devices()[:count]), teacher)
            for named, count in (("data=1", 1), (description, size))
        ]
    (before, one, losses), (_, other, others) = found
    apart = {}
    for name in ("model", "score"):
        moved, off = (
            math.sqrt(sum(float(np.sum(np.square(a - b))) for a, b in zip(*leaves, strict=True)))
            for leaves in (
                (jax.tree.leaves(one[name]), jax.tree.leaves(before[name])),
                (jax.tree.leaves(one[name]), jax.tree.leaves(other[name])),
            )
        )
        apart |= {name: off / moved, f"{name} moved": moved}
    apart |= {name: abs(losses[name] - others[name]) / losses[name] for name in losses}
    print(json.dumps(apart))


if __name__ == "__main__":
    main(sys.argv[1])
