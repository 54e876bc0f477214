"""Teachers of students: weights folders, their own levels, and what they say with guidance."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float, Int, PyTree
from jvdm.errors import ConfigError
from jvdm.pipeline.loading import manifest_of, ready, system_of
from jvdm.pricing import stored_shapes
from jvdm.samplers import ClassifierFree, Denoiser
from jvdm.samplers.guidance import UNCONDITIONAL
from jvdm.system import System
from jvdm.weights.folder import find

CURVE = 960  # steps of a teacher between which its levels are straight; of many divisors


def teacher_of(
    place: str, student: System, guidance: float | None
) -> tuple[System, Float[np.ndarray, " levels"]]:
    """Returns the system of a weights folder, and its levels in very many steps.

    Args:
        place: Weights folder, or name of embedded weights.
        student: Who learns from it.
        guidance: Scale of its guidance; None for its own rule.

    Raises:
        WeightsError: If the folder cannot be read.
        ConfigError: If the student's process, latents or actions are others.
    """
    system, grid = _read(place)
    mine = (student.process, student.vae.latent_channels)
    if mine != (system.process, system.vae.latent_channels):
        what = f"the student's process or latents are not those of {place}"
        raise ConfigError(what, "both see the same noisy latents", "name another teacher")
    acts, taught = (getattr(of.model, "actions", ()) for of in (student, system))
    if acts != taught:
        what = f"the student is told {len(acts)} actions, its teacher {place} {len(taught)}"
        raise ConfigError(what, "both are told the same", "name a teacher that was played so")
    if guidance is not None:
        rule = ClassifierFree(guidance).settled()
        sampling = dataclasses.replace(system.sampling, guidance=rule)
        system = dataclasses.replace(system, sampling=sampling)
    return system, grid


def arrays_of(place: str, system: System) -> PyTree:
    """Reads the text encoder and the network of a weights folder: `{"text", "model"}`."""
    folder = find(place)
    manifest, shapes = manifest_of(folder), stored_shapes(system)
    return {
        name: ready(manifest.parameters(folder, name, shapes[name])[1], getattr(system, name))
        for name in ("text", "model")
    }


def guided_teacher(
    system: System,
    arrays: PyTree,
    text: Any,
    tokens: PyTree,
    actions: Int[Array, "B F"] | None = None,
) -> Denoiser:
    """Returns a teacher with its guidance; its first carry is that of `System.start`.

    Args:
        system: The teacher.
        arrays: Its parameters.
        text: What read the prompts, to read the empty one.
        tokens: What it read.
        actions: What is done in the clips, where the world is played.
    """
    nothing = jax.tree.map(jnp.asarray, text.read(("",))[0])
    empty = jax.tree.map(lambda one, all_: jnp.broadcast_to(one, all_.shape), nothing, tokens)
    parts = [empty if UNCONDITIONAL in name else tokens for name in system.branches]
    ids = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    return system.denoiser(arrays, system.conditions(arrays, ids, actions=actions))


@functools.lru_cache(maxsize=4)
def _read(place: str) -> tuple[System, np.ndarray]:
    system = system_of(manifest_of(find(place)))
    levels: Any = system.sampling.levels
    if any(field.name == "num_steps" for field in dataclasses.fields(levels)):
        levels = dataclasses.replace(levels, num_steps=CURVE)
    with jax.ensure_compile_time_eval():  # they are numbers of the teacher
        return system, np.asarray(levels(), np.float64)
