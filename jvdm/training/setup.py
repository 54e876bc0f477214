"""What happens once before the first step: shapes, state, compilation; and traces of later ones."""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
from jax.sharding import Mesh

from jvdm.arrays import Array, PyTree
from jvdm.compiling import compiler_options, kernel_draws
from jvdm.errors import ConfigError
from jvdm.parallel import placed_shapes, replicate, using, whole
from jvdm.training import inventory, memory
from jvdm.training.checkpoint import Restored, read_averages
from jvdm.training.objective import (
    HasComponents,
    HasFrozen,
    HasShapes,
    HasUpdate,
    Objective,
    Source,
    Transform,
)
from jvdm.training.optimizer import Optimizer
from jvdm.training.state import TrainState, init_state
from jvdm.training.step import Step
from jvdm.weights import read_manifest, safetensors
from jvdm.weights.folder import find, identity

CHECKPOINTS = "checkpoints"
"""Folder of checkpoints in that of a run."""


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run begins: steps done, state, data, the compiled step and its operations."""

    position: int
    state: TrainState
    data: PyTree
    step: Callable
    flops: float


@runtime_checkable
class UsesWorkdir(Protocol):
    """A source that writes lists for people, such as one of unusable videos."""

    def in_workdir(self, workdir: Path) -> Source:
        """Returns the same source, writing into `workdir`."""
        ...


@runtime_checkable
class UsesEncoders(Protocol):
    """A source that encodes clips as what is trained reads them."""

    def encoded_for(self, objective: Any) -> Source:
        """Returns the same source, with the encoders of `objective`."""
        ...


def placed(source: Source, workdir: Path, objective: Objective) -> Source:
    """Returns `source`, told where it may write and what it encodes for, if it wants to know."""
    source = source.in_workdir(workdir) if isinstance(source, UsesWorkdir) else source
    return source.encoded_for(objective) if isinstance(source, UsesEncoders) else source


def opened(
    source: Source, position: int, saved: bytes | None, mesh: Mesh
) -> tuple[PyTree, Callable[[], PyTree]]:
    """Returns the state of `source` as shapes, and what makes it; where it has none, it is made."""
    if isinstance(source, HasShapes):
        return source.shapes(mesh), functools.partial(source.start, position, saved, mesh)
    data = source.start(position, saved, mesh)
    return data, lambda: data


def transform_of(objective: Objective, optimizer: Optimizer, num_steps: int) -> Transform:
    """Returns what moves the parameters of `objective`: its own rule, or `optimizer`."""
    if isinstance(objective, HasUpdate):
        return objective.transform(optimizer, num_steps)
    return optimizer.build(num_steps)


def state_shapes(objective: Objective, transform: Transform, seed: int, mesh: Mesh) -> TrainState:
    """Returns the training state as shapes, placed on `mesh`; computes nothing."""
    return placed_shapes(jax.eval_shape(lambda: init_state(objective, transform, seed)), mesh)


def beginning(
    restored: Restored | None,
    origin: tuple[Objective, Transform, int, Mesh],
    start_from: Path | None,
) -> tuple[int, bytes | None, Callable[[], TrainState]]:
    """Returns how many steps are done, what the source kept, and what makes the state.

    All of a checkpoint, or of a run that begins, whose parameters are read now (`given`) and
    drawn later (`make_state`).
    """
    if restored is not None:
        return restored.step, restored.data, lambda: restored.state
    parameters = given(origin[0], start_from)
    return 0, None, functools.partial(make_state, *origin, parameters)


def make_state(
    objective: Objective,
    transform: Transform,
    seed: int,
    mesh: Mesh,
    parameters: PyTree | None = None,
) -> TrainState:
    """Returns the state before the first step, placed on `mesh`.

    Args:
        objective: What is trained.
        transform: The optimizer.
        seed: Seed of the run.
        mesh: The devices.
        parameters: Those that it begins with (`given`); what is left a shape is drawn, and
            with None all is.
    """
    shapes = state_shapes(objective, transform, seed, mesh)
    places = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    draw = jax.jit(lambda: init_state(objective, transform, seed), out_shardings=places)
    with kernel_draws(all(place.is_fully_replicated for place in jax.tree.leaves(places))):
        state = draw()
    if parameters is None:
        return state

    def instead(leaf: Any, drawn: Array) -> Array:
        known = not isinstance(leaf, jax.ShapeDtypeStruct)
        return jax.device_put(leaf, drawn.sharding) if known else drawn

    # Two copies: the step is given both to overwrite.
    drawn = (state.params, state.ema)
    params, ema = (jax.tree.map(instead, parameters, tree) for tree in drawn)
    return state.replace(params=params, ema=ema)


def given(objective: Objective, start_from: Path | None) -> PyTree | None:
    """Returns the parameters that a run begins with, as shapes those that it draws; None: all.

    What is never exported is drawn, and so is what a file lacks of a network's `silent` parts.

    Args:
        objective: What is trained.
        start_from: Safetensors file with all parameters, weights folder, name of embedded
            weights, or work directory of a run (or one of its checkpoints, by step) whose
            averages are taken, from any mesh and number type; None draws all.

    Raises:
        WeightsError: If it cannot be read or holds another model.
        CheckpointError: If it is a run without a checkpoint that can be read.
    """
    if start_from is None:
        return None
    place, shapes = find(start_from), jax.eval_shape(objective.init, jax.random.key(0))
    if os.path.isdir(place / CHECKPOINTS) or place.parent.name == CHECKPOINTS:
        return _averages(place, shapes)
    if os.path.isfile(place):
        tree = safetensors.load(place)
        safetensors.check_floating(place, tree)
        safetensors.match(place, tree, shapes)
        return tree
    if not isinstance(objective, HasComponents):
        what = f"{type(objective).__name__} does not say which components it trains"
        raise ConfigError(what, f"{place} holds components", "start from a safetensors file")
    manifest, (leaves, structure) = read_manifest(place), jax.tree.flatten(shapes)
    identity(place)
    numbered = jax.tree.unflatten(structure, range(len(leaves)))
    for name, component in objective.components(numbered).items():
        manifest.component(name)
        path, tree = manifest.parameters(place, name)
        places, arrays = safetensors.flatten(component.params), safetensors.flatten(tree)
        silent = set(getattr(component.module, "silent", ()))
        there = (key for key in places if key in arrays or silent.isdisjoint(key.split("/")))
        safetensors.match(path, arrays, {key: leaves[places[key]] for key in there})
        for key, leaf in arrays.items():
            leaves[places[key]] = leaf
    return jax.tree.unflatten(structure, leaves)


def _averages(place: Path, shapes: PyTree) -> PyTree:
    """Returns the averages of a checkpoint in the number types of `shapes`."""
    step = int(place.name) if place.parent.name == CHECKPOINTS else None
    arrays = read_averages(place / CHECKPOINTS if step is None else place.parent, step)
    wanted = inventory.by_name(shapes)
    safetensors.match(place, arrays, wanted, "start from a run of the same model")
    leaves = [arrays[name].astype(leaf.dtype) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def compile_step(
    objective: Objective,
    step: Step,
    shapes: TrainState,
    data: PyTree,
    mesh: Mesh,
    traced: bool = False,
) -> tuple[Callable, float]:
    """Compiles `step` for the shapes and shardings of its donated arguments.

    If it will be `traced`, so that every operation has its own time.

    Returns:
        `(state, data) -> (state, data, metrics)`, which holds what `objective` does not
        train; and the operations of a step.

    Raises:
        DeviceMemoryError: If a device cannot hold it.
    """
    frozen = replicate(objective.frozen(), mesh) if isinstance(objective, HasFrozen) else {}
    with using(mesh):  # as it is lowered, so that it is traced once
        memory.check(step, frozen, shapes, data, mesh)
    state_sharding, data_sharding = (
        jax.tree.map(lambda leaf: leaf.sharding, tree) for tree in (shapes, data)
    )
    jitted = jax.jit(
        step.run, donate_argnums=(1, 2), out_shardings=(state_sharding, data_sharding, None)
    )
    devices = jax.tree.leaves(state_sharding)[0].device_set
    options = compiler_options(next(iter(devices)).platform, traced)
    for note in whole(shapes.params, mesh):
        print(note, file=sys.stderr)
    with using(mesh):
        lowered = jitted.lower(frozen, shapes, data)
        flops = step.flops(frozen, shapes, data)
    compiled = functools.partial(lowered.compile(compiler_options=options), frozen)
    return compiled, flops
