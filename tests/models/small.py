"""A small VideoDiT whose every input has an effect, shared by the tests of models."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jvdm.models import Conditions, TextStates, VideoDiT
from jvdm.samplers import Call
from tests.generate.nano import drawn

DIT: Any = VideoDiT(
    width=32, depth=3, latent_channels=4, head_dim=16, rotary_axes=(4, 6, 6), dtype="float32"
)
SHAPE = (2, 3, 4, 4, 4)


def conditions(key=None, lengths=(3, 5)) -> Any:
    """Random text states of six tokens."""
    key = jax.random.key(7) if key is None else key
    return Conditions(TextStates(jax.random.normal(key, (2, 6, 8)), jnp.asarray(lengths)))


@functools.cache
def parameters(model: Any = DIT):
    """Random parameters, scaled up so that nothing is hidden by small outputs."""
    inputs = (jnp.zeros(SHAPE), Call.at(jnp.zeros(SHAPE[:2])), conditions())
    params = drawn(model.init, jax.random.key(1), *inputs)["params"]
    return jax.tree.map(lambda leaf: 1.5 * leaf, params)


@functools.cache
def runner(model: Any = DIT):
    """`model` as a compiled function of its parameters and inputs, without the carry."""
    return jax.jit(lambda p, x, t, *told: model.apply({"params": p}, x, Call.at(t), *told)[0])


def latents(seed: int = 0):
    """Random latents."""
    return jax.random.normal(jax.random.key(seed), SHAPE)
