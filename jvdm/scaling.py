"""The same work on one device and on all of them, for `jvdm bench parallel`.

Networks are those of `jvdm.families`, with random weights; what comes out is compared too.
"""

import dataclasses
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jvdm.arrays import Array, Key, Latents, PyTree
from jvdm.attention import Dense, Draft
from jvdm.compiling import Program
from jvdm.families import FAMILIES, Family, gib, inputs, network_of, predicted, shapes_of
from jvdm.families import random_parameters as randomized
from jvdm.parallel import data_mesh, mesh_of, place, replicate, split_batch, using
from jvdm.training import setup
from jvdm.training.objective import GivenBatch, TrainCall
from jvdm.training.optimizer import Optimizer
from jvdm.training.step import make_step
from pallas_kernels.attention.bench import seconds

STEPS = 5  # of training that are timed
SCALE = 4.0  # of guidance


class Part(NamedTuple):
    """What is timed.

    Attributes:
        axis: Axis of the mesh on which all devices lie.
        each: Whether there is a video for each device; else there is one.
        policy: Who attends to whom.
    """

    axis: str
    each: bool = False
    policy: Any = Dense()


PARTS: Mapping[str, Part] = {
    "all-to-all": Part("sequence"),
    "ring": Part("ring"),
    "draft .25": Part("sequence", policy=Draft(density=0.25)),
    "draft, ring": Part("ring", policy=Draft(density=0.25)),
    "branches": Part("data", each=True),
    "guided": Part("branch"),
    "training": Part("fsdp", each=True),
}
"""A call whose tokens are split, in two ways, each with a quarter of the blocks of attention too; a
call of as many videos, as branches of guidance may be, as there are devices; one of one video that
is guided by as many branches; a training step of as many videos, with parameters and optimizer
split."""


class Timed(NamedTuple):
    """Median seconds, GiB of a device, and what came out."""

    seconds: float
    gib: float | None
    made: Any


def rows(names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Times every part of families on one device and on all.

    Args:
        names: Of `jvdm.families.FAMILIES`.

    Yields:
        `shape`, `part`, `mesh`; `one_seconds` and `seconds`, on one device and on all; `ratio`, how
        many times faster all are; `one_gib` and `gib`, what a device holds; and `error`, the norm
        of the difference of what came out over its norm: predictions, or losses of training.
    """
    for name in names:
        for part_name, part in PARTS.items():
            mesh = f"{part.axis}={jax.device_count()}"
            timed = _step if part_name == "training" else _call
            one = timed(FAMILIES[name], part, data_mesh(1))
            all_ = timed(FAMILIES[name], part, mesh_of(mesh))
            yield {
                **{"shape": name, "part": part_name, "mesh": mesh},
                **{"one_seconds": one.seconds, "seconds": all_.seconds},
                **{"ratio": one.seconds / all_.seconds, "one_gib": one.gib, "gib": all_.gib},
                "error": float(np.linalg.norm(all_.made - one.made) / np.linalg.norm(one.made)),
            }


def told(row: Mapping[str, Any] | None = None) -> str:
    """Returns a line of the table, its head if there is no row."""
    if row is None:
        head = "shape          part        mesh        one: ms     GiB"
        return f"{head}  all: ms     GiB   ratio   error"
    one, all_ = (
        f"{1e3 * row[f'{of}seconds']:7.1f} "
        + ("      -" if row[f"{of}gib"] is None else f"{row[f'{of}gib']:7.2f}")
        for of in ("one_", "")
    )
    head = f"{row['shape']:14} {row['part']:11} {row['mesh']:11}"
    return f"{head} {one}  {all_} {row['ratio']:7.2f} {row['error']:7.1e}"


def _call(family: Family, part: Part, mesh: Mesh) -> Timed:
    """Times a call of the network."""
    network = network_of(family).clone(policy=part.policy)
    params = place(randomized(shapes_of(network, family), network), mesh)
    given = _videos(family, part, mesh)

    def call(params: PyTree, x: Latents, states: Array) -> Latents:
        made = predicted(network, params, jnp.repeat(x, len(states) // len(x), 0), states)
        if len(made) == len(x):
            return made
        shares = np.full(len(made), -SCALE / (len(made) - 1), np.float32)
        shares[0] = 1 + SCALE  # of the first branch, for what the others do not say
        return jnp.tensordot(shares, made, 1)[None]

    with using(mesh):
        compiled = Program(call).lower(params, *given).compile()
    return Timed(
        seconds(compiled, params, *given), gib(compiled), np.asarray(compiled(params, *given))
    )


@dataclasses.dataclass(frozen=True)
class Velocity:
    """Regression of the velocity at one level: what a step of flow matching computes."""

    family: Family
    """Of the network, which computes its layers again in the backward pass."""
    dtype: str | None = None
    """Number type of the computation; None is that of the device."""

    def init(self, key: Key) -> PyTree:
        """Returns random parameters in float32."""
        network = network_of(self.family)
        return randomized(shapes_of(network, self.family), network.clone(dtype="float32"))

    def loss(
        self, params: PyTree, batch: PyTree, call: TrainCall
    ) -> tuple[Array, dict[str, Array]]:
        """Returns the mean of squared errors."""
        latents, states = batch
        noise = jax.random.normal(call.key, latents.shape)
        network = network_of(self.family, self.dtype).clone(remat="all")
        found = predicted(network, params, (latents + noise) / 2, states)
        return jnp.mean(jnp.square(found - (noise - latents))), {}


def _step(family: Family, part: Part, mesh: Mesh) -> Timed:
    """Times a training step, and returns the losses of the first ones."""
    objective, size = Velocity(family), jax.device_count()
    transform = setup.transform_of(objective, Optimizer(kind="adamw"), STEPS + 1)
    data = _videos(family, part, mesh)
    step = make_step(objective, GivenBatch(data), transform, size, ema_decay=0.999)
    shapes = setup.state_shapes(objective, transform, 0, mesh)
    run, _ = setup.compile_step(objective, step, shapes, data, mesh)
    state = setup.make_state(objective, transform, 0, mesh)
    times: list[float] = []
    losses: list[float] = []
    for _ in range(STEPS + 1):
        began = time.perf_counter()
        state, data, metrics = run(state, data)
        losses.append(float(metrics["loss"]))
        times.append(time.perf_counter() - began)
    return Timed(statistics.median(times[1:]), gib(run.func), np.array(losses))


def _videos(family: Family, part: Part, mesh: Mesh) -> PyTree:
    """Returns latents and states where they belong; of branches every device gets all."""
    given = inputs(family, jax.device_count() if part.each else 1)
    if part.axis == "branch":
        given = given[0], inputs(family, jax.device_count())[1]
    return split_batch(given, mesh) if part.each else replicate(given, mesh)
