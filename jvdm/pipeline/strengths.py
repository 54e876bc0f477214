"""Low-rank changes that a loaded model keeps beside its weights, made stronger or weaker."""

import dataclasses
import math

import jax.numpy as jnp

from jvdm.errors import ConfigError
from jvdm.models.low_rank import Adapted
from jvdm.pipeline.pipeline import Pipeline
from jvdm.weights.diffusers import ADAPTED, Published


def with_strengths(pipe: Pipeline, *strengths: float | int) -> Pipeline:
    """Returns the model with its low-rank changes at other strengths; nothing is compiled again.

    Both share all arrays. At strength 0 it makes the bits of the model without changes, and
    `pipe.params["model"].params` are its weights.

    Args:
        pipe: Loaded with `lora` and `lora_separate=True`.
        *strengths: One for each of `lora`, in their order; 1 is as it was trained, 0 not at all.

    Raises:
        ConfigError: If it keeps none, there are not as many numbers, or one is not finite.
    """
    params, manifest = pipe.params[ADAPTED], pipe.manifest
    if not isinstance(params, Adapted) or not isinstance(manifest, Published):
        why = "it keeps no low-rank changes beside its weights"
        fix = "load it with lora=[PATH, ...] and lora_separate=True"
        raise ConfigError(f"strengths were given for {pipe!r}", why, fix)
    adapters = manifest.adapters
    if len(strengths) != len(adapters) or not all(map(math.isfinite, strengths)):
        what = f"strengths are {', '.join(map(str, strengths)) or 'none'}"
        why = f"each of {', '.join(adapter.label for adapter in adapters)} has one, a finite number"
        raise ConfigError(what, why, "use 0 to 2")
    changed = [
        dataclasses.replace(adapter, strength=float(strength))
        for adapter, strength in zip(adapters, strengths, strict=True)
    ]
    arrays = dict(pipe.arrays)
    for adapter in changed:
        said = arrays[adapter.label].partition(",")[0]
        arrays[adapter.label] = f"{said}, strength {adapter.strength:g}"
    # Made of the old ones, so that they lie on the same devices.
    moved = jnp.zeros_like(params.strengths) + jnp.array(strengths, jnp.float32)
    params = dataclasses.replace(params, strengths=moved)
    return dataclasses.replace(
        pipe,
        params={**pipe.params, ADAPTED: params},
        manifest=dataclasses.replace(manifest, adapters=tuple(changed)),
        arrays=arrays,
    )
