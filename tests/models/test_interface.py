"""Chunks with an interface: who sees whom, what is shared, lengths, bad input."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm import ConfigError, samplers
from jvdm.models import VideoDiT
from jvdm.models.conditions import Conditions, in_sections
from jvdm.models.interface import InterfaceDiT
from jvdm.samplers import Call, initial_noise, linspace_levels, synchronous
from tests.generate.nano import drawn
from tests.models.small import SHAPE, conditions

SIZES: Any = {"width": 32, "depth": 1, "latent_channels": 4, "head_dim": 16}
SIZES |= {"rotary_axes": (4, 6, 6), "dtype": "float32"}
MODEL: Any = InterfaceDiT(**SIZES, tokens=4, blocks=1)
TOLD, FRAMES = conditions(), 7  # chunks of frames 0-2, 2-4, 4-6; key frames 0, 2, 4, 6
X = jax.random.normal(jax.random.key(3), (2, FRAMES, 4, 4, 4))


@functools.cache
def parameters(model: Any = MODEL) -> Any:
    """Random ones, scaled up so that nothing is hidden by small outputs."""
    inputs = (jnp.zeros(SHAPE), Call.at(jnp.zeros(SHAPE[:2])), TOLD)
    made = drawn(model.init, jax.random.key(1), *inputs)["params"]
    return jax.tree.map(lambda leaf: 1.5 * leaf, made)


@functools.cache
def runner(model: Any = MODEL) -> Any:
    """The network as a compiled function."""
    return jax.jit(lambda params, x, t: _apply(model, params, x, t))


def _apply(model, params, x, t, told=TOLD):
    return model.apply({"params": params}, x, Call.at(t), told, None)[0]


def said(x=X, level=0.8, model=MODEL, params=None) -> np.ndarray:
    params = parameters(model) if params is None else params
    return np.asarray(runner(model)(params, x, jnp.full(x.shape[:2], level)))


def readers(model, frame) -> list[int]:
    """The frames whose prediction changes with a frame."""
    changed = np.abs(said(X.at[:, frame].add(1.0), model=model) - said(model=model))
    return np.flatnonzero(changed.max((0, 2, 3, 4)) > 1e-6).tolist()


def test_all_chunks_read_key_frames_and_others_are_those_of_their_chunk():
    assert readers(MODEL, 4) == list(range(FRAMES))
    assert readers(MODEL, 1) == [0, 1, 2]
    alone = MODEL.clone(tokens=0)
    assert readers(alone, 4) == [2, 3, 4, 5, 6]
    assert readers(alone.clone(overlap=0), 4) == [3, 4, 5, 6]  # chunks 0-2, 3-5, 4-6


def test_chunks_read_the_prompt_to_its_end_and_no_further():
    """Of five states and of three; the interface itself, without layers, reads none."""
    model, text = MODEL.clone(blocks=0), TOLD.text
    params, t = parameters(model), jnp.full((2, 3), 0.8)

    @jax.jit
    def told(states):
        return _apply(model, params, X[:, :3], t, Conditions(text.replace(states=states)))

    changed = np.asarray(told(text.states.at[:, 4].add(1.0)) - told(text.states))
    assert np.abs(changed[1]).max() > 1e-3 and not changed[0].any()


def test_one_chunk_without_tokens_is_the_network_itself():
    alone, plain = MODEL.clone(tokens=0), VideoDiT(**SIZES)
    params = parameters(alone)
    x, t = X[:, :3], jnp.full((2, 3), 0.5)
    np.testing.assert_array_equal(_apply(alone, params, x, t), _apply(plain, params, x, t))


def test_shared_frames_are_mixed_above_the_gate_and_one_chunk_says_all_below():
    alone, plain = MODEL.clone(tokens=0), VideoDiT(**SIZES)
    params = parameters(alone)

    def parts(level):
        t = jnp.full((2, 3), level)
        return [np.asarray(_apply(plain, params, X[:, s : s + 3], t)) for s in (0, 2, 4)]

    noisy, late = said(level=0.8, model=alone), said(level=0.3, model=alone)
    one, two, three = parts(0.8)
    np.testing.assert_allclose(noisy[:, 2], (one[:, 2] + two[:, 0]) / 2, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(noisy[:, 4], (two[:, 2] + three[:, 0]) / 2, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(noisy[:, 3], two[:, 1], rtol=1e-3, atol=1e-4)
    one, two, _ = parts(0.3)
    np.testing.assert_allclose(late[:, 2], one[:, 2], rtol=1e-3, atol=1e-4)
    assert np.abs(one[:, 2] - two[:, 0]).max() > 1e-2


@pytest.mark.parametrize(("chunk", "overlap", "frames"), [(3, 1, 7), (4, 2, 9), (5, 2, 6)])
def test_shares_of_a_frame_sum_to_one_and_ramps_fall_evenly(chunk, overlap, frames):
    model = MODEL.clone(chunk=chunk, overlap=overlap)
    places = model._frames(frames)
    assert places.max() == frames - 1
    for level in (0.9, 0.1):
        shares = np.asarray(model._shares(jnp.full((1, frames), level), places))[0]
        sums = np.zeros(frames)
        np.add.at(sums, places, shares)
        np.testing.assert_allclose(sums, 1.0, rtol=1e-6)
        assert (level > 0.5) == bool(((shares > 0) & (shares < 1)).any())
    model = MODEL.clone(chunk=6, overlap=3)
    first = np.asarray(model._shares(jnp.ones((1, 9)), model._frames(9)))[0, 0]
    np.testing.assert_allclose(first, [1, 1, 1, 0.75, 0.5, 0.25], rtol=1e-6)


def test_parameters_and_tokens_are_those_of_any_length():
    count = sum(leaf.size for leaf in jax.tree.leaves(parameters()))
    long = jax.random.normal(jax.random.key(5), (1, 17, 4, 4, 4))
    inputs = (long, Call.at(jnp.ones((1, 17))), jax.tree.map(lambda leaf: leaf[:1], TOLD))
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), *inputs)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count
    assert shapes["interface"]["tokens"].shape == (4, 32)


def test_a_run_hands_its_carry_on_and_frames_are_fused():
    noise = initial_noise(jax.random.key(4), jnp.arange(2), FRAMES, (4, 4, 4))
    params, matrix = parameters(), synchronous(linspace_levels(3), FRAMES)

    def run(x):
        def predict(x, call, carry):
            return MODEL.apply({"params": params}, x, call, TOLD, carry)

        denoise = samplers.make_denoiser(predict, samplers.rectified_flow())
        carry = MODEL.start(FRAMES, 4, 4, jnp.arange(FRAMES, dtype=jnp.float32), 2)
        given = (samplers.Euler(), samplers.rectified_flow(), matrix, x, jax.random.key(4))
        return samplers.sample(denoise, *given, carry=carry).x

    expected = noise
    for level in (1.0, 2 / 3, 1 / 3):
        expected = expected - said(expected, level) / 3
    np.testing.assert_allclose(jax.jit(run)(noise), expected, rtol=1e-3, atol=1e-3)


def test_what_no_interface_can_be_told_is_refused():
    t = jnp.ones((2, FRAMES))
    text: Any = TOLD.text
    for model, told in (
        (MODEL, Conditions()),
        (MODEL, Conditions(in_sections((text, text), (0, 2), FRAMES))),
        (MODEL.clone(ports=("text", "channel")), TOLD),
    ):
        with pytest.raises(ConfigError, match="one prompt and tokens beside it"):
            _apply(model, {}, X, t, told)
    with pytest.raises(ConfigError, match="tiles of frames 3 that share 3"):
        _apply(MODEL.clone(overlap=3), {}, X, t)
