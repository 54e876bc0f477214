"""Tiles and few steps trained together, beside each alone: the table of efficient_vdit.

python -m tests.systems.tiled_student [STEPS] [CLIPS]

Trains the student of `configs/efficient_vdit.py`, and one with dense attention, from the same seed
on the same batches. Each is sampled in its four steps with dense attention and with tiles; `steps`
are how many were trained, 0 is the shipped network. Prints the PSNR of clips of held-out captions
to those that the teacher makes of the same noise in sixteen guided steps, and the energy distance
of the latents to those of the films, 0 for equal laws; `world` is one half of the films against the
other.
"""

import dataclasses
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

import jvdm
from jvdm.attention import Dense
from jvdm.comparison import price
from jvdm.configs import efficient_vdit
from jvdm.values import from_data
from tests.systems import equal_steps
from tests.systems.own_frames import energy, films, made

STEPS = 16  # of the teacher


def student(pipe: Any, objective: Any, params: Any, policy: Any) -> Any:
    """Returns the pipeline that samples what was trained, with some attention."""
    system = dataclasses.replace(pipe.system, model=objective.system.model.clone(policy=policy))
    rules = from_data(objective.rules["sampling"])
    return dataclasses.replace(
        pipe,
        system=dataclasses.replace(system, sampling=rules),
        params={**pipe.params, **params},
    )


def main(steps: int = 400, count: int = 128) -> None:
    """Prints a row for every student and attention."""
    experiment: Any = efficient_vdit.config()
    ours, frames = experiment.objective, efficient_vdit.NUM_FRAMES
    pipe = jvdm.load("nano", progress=False)
    said, true = films(pipe, count, frames)
    levels = dataclasses.replace(pipe.system.sampling.levels, num_steps=STEPS)
    sampling = dataclasses.replace(pipe.system.sampling, levels=levels)
    teacher = dataclasses.replace(pipe.system, sampling=sampling)
    ends = made(dataclasses.replace(pipe, system=teacher), said, frames, None)
    clips = jnp.asarray(pipe.decode(jnp.asarray(ends)))
    print(f"world {energy(true[::2], true[1::2]):.3f}, teacher {energy(ends, true):.3f}")
    print("student   steps  attention   PSNR  energy", flush=True)
    seen, frozen = equal_steps.clips("train", equal_steps.CLIPS, frames), ours.frozen()
    tiles = ours.system.model.policy
    for name, policy, trained in (
        ("any", Dense(), 0),
        ("dense", Dense(), steps),
        ("tiles", tiles, steps),
    ):
        began, model = time.perf_counter(), ours.system.model.clone(policy=policy)
        objective = dataclasses.replace(ours, system=dataclasses.replace(ours.system, model=model))
        given = (experiment.optimizer, seen, trained, experiment.start_from)
        params = equal_steps.train(objective, *given, frozen=frozen)
        taken = time.perf_counter() - began
        for kind, run in (("dense", Dense()), ("tiles", tiles)):
            found = made(student(pipe, objective, params, run), said, frames, None)
            near = float(price(jnp.asarray(pipe.decode(jnp.asarray(found))), clips)["psnr"])
            told = f"{near:5.1f}  {energy(found, true):6.3f}  {taken:.0f} s"
            print(f"{name:9} {trained:5}  {kind:9}  {told}", flush=True)


if __name__ == "__main__":
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    main(*map(int, sys.argv[1:]))
