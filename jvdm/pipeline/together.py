"""Requests of a system of several modalities, such as video and audio, checked and completed.

Prompts, seeds, steps and the length are said once and hold for all. What a modality has of its own
is a dict by name: `matrix`, `latents` and `given` of a request, and any rule of the sampling. One
clock joins them: `num_frames` and `fps` say how many seconds there are, and an autoencoder of what
is no pictures says how many samples it codes in one (`rate`).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.core import FrozenDict

from jvdm import pricing, prompts
from jvdm.errors import ConfigError
from jvdm.pipeline import request as of_one
from jvdm.pipeline.request import BY_NAME, Job, LatentShape, Request
from jvdm.rows import keep_given, matrix_of, starts_noisy
from jvdm.samplers import (
    LagMatrix,
    PromptSwitch,
    TimestepMatrix,
    check_weights,
    pad_rows,
    waves_in_seconds,
)
from jvdm.samplers.modalities import each, every
from jvdm.settings import PICTURE, check_numbers, settings_of, settled, with_numbers
from jvdm.system import System
from jvdm.weights import Manifest

_ALONE = ("invert", "source_prompt", "switch", "prompt_at")  # of a run of one latent


def prepare(request: Request, system: System, manifest: Manifest, devices: int = 1) -> Job:
    """Checks a request and settles what it leaves open, as for one modality.

    Raises:
        ConfigError: If a value or a combination cannot be used.
        ShapeError: If a size does not fit; it names the two nearest that do.
        DeviceMemoryError: If it cannot be held; it names the largest that can.
    """
    _check(request, system)
    pictures = next(name for name, vae in system.vae.items() if not hasattr(vae, "rate"))
    request = of_one.with_frames(check_numbers(request), alone(system, pictures), manifest)
    sampling = with_numbers(system.sampling, request)
    settings = settled(request, sampling, manifest.defaults)
    guidance = each(lambda rule: rule.settled(), sampling.guidance)
    sampling = dataclasses.replace(sampling, guidance=guidance)
    system = dataclasses.replace(system, sampling=sampling)
    parts = {name: alone(system, name) for name in system.vae}
    texts, seeds = prompts.batch(request.prompt, request.seed, request.num_videos)

    def shape_of(size: pricing.Size) -> FrozenDict:
        asked = dataclasses.replace(settings, **dict(zip(size._fields[1:], size[1:], strict=True)))
        return FrozenDict(each(lambda part: _shape(part, asked, size.videos), parts))

    size = pricing.Size(len(texts), settings.num_frames, settings.height, settings.width)
    shape = shape_of(size)
    known: Any = request.given or {}
    given = {name: tuple(known.get(name, ())) for name in parts}
    matrix = each(
        lambda matrix, part, given: keep_given(matrix, starts_noisy(matrix, part.process), given),
        _matrices(request, parts, settings, shape),
        parts,
        given,
    )
    for name, part in parts.items():
        check_weights(part.sampling.guidance, matrix[name])
    window = each(lambda matrix: matrix.window, matrix)
    jax.eval_shape(lambda: system.start(shape, window))  # a policy may refuse the sizes
    estimate = pricing.check(system, size, matrix, devices, shape_of)
    ids, unknown = of_one.read(system, texts, settings)
    latents = every(request.latents, parts)
    return Job(
        settings=settings,
        prompts=texts,
        seeds=seeds,
        system=system,
        ids=ids,
        switch=PromptSwitch(()),
        later=(),
        sections=(),
        inversion=None,
        matrix=matrix,
        known=(),
        given=given,
        channel=None,
        pictures=None,
        shape=shape,
        noise=None if request.latents is None else each(of_one.noise_of, latents, shape),
        inputs={},
        warnings=(*unknown, *estimate),
    )


def alone(system: System, name: str) -> System:
    """Returns what a system says of one of its modalities."""
    rules = system.sampling
    own = {
        field: every(getattr(rules, field), system.vae)[name]
        for field in ("levels", "matrix", "solver", "guidance", "noise")
    }
    of_system = {
        field: every(getattr(system, field), system.vae)[name]
        for field in ("vae", "process", "prediction")
    }
    return dataclasses.replace(system, sampling=dataclasses.replace(rules, **own), **of_system)


def apart(pipe: Any, latents: Any) -> dict[str, tuple[Any, Any]]:
    """Returns a pipeline that decodes, and its latents, for every modality by its name."""
    if not isinstance(latents, Mapping):
        return {"": (pipe, latents)}
    return {
        name: (
            dataclasses.replace(
                pipe, system=alone(pipe.system, name), params={"vae": pipe.params["vae"][name]}
            ),
            part,
        )
        for name, part in latents.items()
    }


def _check(request: Request, system: System) -> None:
    """Refuses what only a single latent has, and values that say no modality."""
    why = f"this system makes {' and '.join(system.vae)}"
    for name in (*settings_of(PICTURE), *_ALONE, *BY_NAME):
        value = getattr(request, name)
        if value is None or isinstance(value, tuple | dict) and not value:
            continue
        if name not in BY_NAME:
            fix = "give latents that are known as given={name: ...}"
            raise ConfigError(f"{name} was given", why, fix)
        if not isinstance(value, Mapping) or not set(value) <= set(system.vae):
            raise ConfigError(f"{name} is a {type(value).__name__}", why, "give a dict by name")


def _shape(part: System, settings: Any, batch: int) -> LatentShape:
    """Returns the sizes of the latents of a modality."""
    vae = part.vae
    if not hasattr(vae, "rate"):
        return of_one.latent_shape(part, settings, batch)
    samples = math.ceil(settings.num_frames / settings.fps * vae.rate - 1e-6)
    return LatentShape(batch, -(-samples // vae.strides[0]), 1, 1, vae.latent_channels)


def _matrices(
    request: Request, parts: Mapping[str, System], settings: Any, shape: Mapping[str, LatentShape]
) -> dict[str, TimestepMatrix]:
    """Returns matrices of equally many rows; a wave is one of seconds, not of frames."""
    asked: Any = every(request.matrix, parts)
    rule = next(iter(parts.values())).sampling.matrix
    if request.matrix is None and isinstance(rule, LagMatrix):
        if rule.first_block is not None:
            what, why = f"a first block of {rule.first_block}", "blocks of modalities are seconds"
            raise ConfigError(what, why, "leave first_block out, or give a matrix for each")
        lengths = {
            name: part.vae.strides[0] / getattr(part.vae, "rate", settings.fps)
            for name, part in parts.items()
        }
        begins = {name: lengths[name] * np.arange(shape[name].frames) for name in parts}
        levels = {name: part.sampling.levels() for name, part in parts.items()}
        asked = waves_in_seconds(levels, begins, rule.lag, rule.block * max(lengths.values()))
    made = {
        name: matrix_of(asked[name], part, settings, shape[name].frames)
        for name, part in parts.items()
    }
    most = max(matrix.num_rows for matrix in made.values())
    return each(lambda matrix: pad_rows(matrix, most), made)
