"""Masked diffusion of single frames: who sees whom, what is copied, windows, training."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm import ConfigError, samplers
from jvdm.configs import art_v, nano
from jvdm.models.conditions import ChannelCondition, Conditions, in_sections
from jvdm.models.next_frame import LEAST_LEVEL, UNKNOWN, NextFrameDiT
from jvdm.samplers import Call, Stabilised, initial_noise, lag_matrix, linspace_levels, windowed
from jvdm.training.next_frame import NextFrameMatching
from jvdm.training.objective import TrainCall
from tests.generate.nano import drawn
from tests.models.small import SHAPE, conditions

FRAMES = 5
MODEL: Any = NextFrameDiT(
    width=32, depth=1, latent_channels=4, head_dim=16, rotary_axes=(4, 6, 6), dtype="float32"
)
FLOW, TOLD = samplers.rectified_flow(), conditions()
X = jax.random.normal(jax.random.key(3), (2, FRAMES, 4, 4, 4))
T = jnp.full((2, FRAMES), 0.5)
OBJECTIVE: Any = art_v.config().objective


@functools.cache
def parameters(model: Any = MODEL) -> Any:
    """Random ones, scaled up so that nothing is hidden by small outputs."""
    inputs = (jnp.zeros(SHAPE), Call.at(jnp.zeros(SHAPE[:2])), TOLD)
    made = drawn(model.init, jax.random.key(1), *inputs)["params"]
    return jax.tree.map(lambda leaf: 1.5 * leaf, made)


@functools.cache
def runner(model: Any = MODEL) -> Any:
    """The network as a compiled function."""
    params = parameters(model)
    return jax.jit(lambda x, t, told: _apply(model, params, x, t, told))


def _apply(model, params, x, t, told):
    return model.apply({"params": params}, x, Call.at(t), told, None)[0]


def said(x=X, t=T, told=TOLD, model=MODEL) -> np.ndarray:
    return np.asarray(runner(model)(x, t, told))


@pytest.mark.parametrize(
    ("fields", "seen"),
    [
        ({}, {0: [0, 1, 2, 3, 4], 1: [1, 2, 3]}),
        ({"anchored": False}, {0: [0, 1, 2], 1: [1, 2, 3]}),
        ({"anchored": False, "back": (1,)}, {0: [0, 1], 3: [3, 4]}),
    ],
)
def test_a_frame_sees_itself_its_references_and_the_anchor(fields, seen):
    model = MODEL.clone(**fields)
    for frame, readers in seen.items():
        changed = said(X.at[:, frame].add(1.0), model=model) - said(model=model)
        moved = np.abs(changed).max((0, 2, 3, 4)) > 1e-6
        assert np.flatnonzero(moved).tolist() == readers


def test_what_the_mask_takes_is_the_frame_before_and_the_first_frame_has_none():
    """With a mask that is open, the clean data that the velocity says is the frame before."""
    params = parameters()
    bias = params["patch_out"]["bias"]
    bias = bias.reshape(4, -1).at[:, -1].set(1e4).reshape(bias.shape)  # squares of 2 x 2 cells
    out = {**params, "patch_out": {**params["patch_out"], "bias": bias}}
    t = T.at[:, ::2].set(0.0)
    velocity = np.asarray(_apply(MODEL, out, X, t, TOLD))
    x0 = np.asarray(X) - 0.5 * velocity
    np.testing.assert_allclose(x0[:, 1::2], X[:, :-1:2], rtol=1e-4, atol=1e-4)
    shut = np.asarray(_apply(MODEL, params, X, t, TOLD))
    np.testing.assert_allclose(velocity[:, 2], shut[:, 2], rtol=1e-4, atol=1e-4)  # 1 is noisy
    near = np.asarray(_apply(MODEL, out, X, t.at[:, 1].set(0.2), TOLD))
    np.testing.assert_allclose(near[:, 2], (X[:, 2] - X[:, 1] / 0.8) / LEAST_LEVEL, rtol=1e-4)
    assert np.abs(velocity[:, 0]).max() < 1e3


def test_a_frame_that_is_told_a_level_is_copied_as_it_was():
    def told(x, call, carry):
        shown = MODEL.references(x, call.t, x[:, :1], call.t[:, :1])
        return samplers.Denoised(shown.copied, shown.levels[..., 0]), carry

    around = Stabilised(0.05).around(told, FLOW)
    copied, levels = around(X, Call.at(jnp.zeros_like(T)), None)[0]
    np.testing.assert_allclose(copied[:, 1:], X[:, :-1], rtol=1e-6)
    np.testing.assert_allclose(levels[:, 1:], 0.05)
    assert not np.any(copied[:, 0]) and (levels[:, 0] == UNKNOWN).all()


@pytest.mark.parametrize("fields", [{}, {"masked": False, "back": (1, 2)}])
def test_windows_of_three_frames_keep_the_anchor(fields):
    model = MODEL.clone(**fields)
    noise = initial_noise(jax.random.key(4), jnp.arange(2), FRAMES, (4, 4, 4))
    levels, params = linspace_levels(2), parameters(model)

    def run(matrix):
        def predict(x, call, carry):
            return model.apply({"params": params}, x, call, TOLD, carry)

        denoise = samplers.make_denoiser(predict, FLOW)
        carry = model.start(matrix.window, 4, 4, jnp.arange(FRAMES, dtype=jnp.float32), 2)
        given = (samplers.Euler(), FLOW, matrix, noise, jax.random.key(4))
        return samplers.sample(denoise, *given, carry=carry)

    whole = lag_matrix(levels, FRAMES, lag=2)
    part = windowed(whole, context=2)
    assert part.window == 3
    expected, found = (jax.jit(run)(matrix) for matrix in (whole, part))
    np.testing.assert_allclose(found.x, expected.x, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found.carry.anchor, found.x[:, :1])


def test_frames_read_prompts_of_their_own():
    text: Any = TOLD.text
    other = text.replace(states=text.states[::-1])
    both = Conditions(in_sections((text, other), (0, 2), FRAMES))
    np.testing.assert_allclose(said(told=both)[:, :2], said()[:, :2], rtol=1e-4, atol=1e-5)
    rest = said(told=Conditions(other))[:, 2:]
    np.testing.assert_allclose(said(told=both)[:, 2:], rest, rtol=1e-4, atol=1e-5)
    assert np.abs(rest - said()[:, 2:]).max() > 1e-3


def batch(shape=(2, 3, 8, 8, 8)):
    tokens = jnp.zeros((2, 64), jnp.int32).at[:, :3].set(jnp.arange(5, 8))
    return {"latents": jax.random.normal(jax.random.key(0), shape), "tokens": tokens}


def test_training_shows_true_frames_and_noises_them_but_not_what_is_copied(monkeypatch):
    seen: Any = {}

    def beside(self, x, call, told, references, carry=None):
        seen.update(x=x, t=call.t, references=references)
        return jnp.zeros_like(x), carry

    monkeypatch.setattr(NextFrameDiT, "beside", beside)
    params = drawn(OBJECTIVE.system.text.init, jax.random.key(0), batch()["tokens"])["params"]
    given = ({"text": params, "model": {}}, batch())
    OBJECTIVE.loss(*given, TrainCall(jnp.int32(0), jax.random.key(1), {}, {}))
    clean, (latents, levels, copied) = batch()["latents"], seen["references"]
    np.testing.assert_allclose(copied[:, 1:], clean[:, :-1], rtol=1e-6)
    level = np.asarray(levels[:, 1, 0])
    assert (level > 0).all() and (level <= OBJECTIVE.augmentation).all() and level[0] != level[1]
    away = np.asarray(latents[:, 1:, 0] - clean[:, :-1] * (1 - level[:, None, None, None, None]))
    np.testing.assert_allclose(away.std((1, 2, 3, 4)), level, rtol=0.1)
    np.testing.assert_array_equal(latents[:, 1:, 2], np.repeat(latents[:, 1:2, 0], 2, 1))
    assert len(np.unique(seen["t"])) == 6
    plain = dataclasses.replace(OBJECTIVE, augmentation=0.0)
    plain.loss(*given, TrainCall(jnp.int32(0), jax.random.key(1), {}, {}))
    np.testing.assert_array_equal(seen["references"].latents[:, 1:, 0], clean[:, :-1])


def test_what_cannot_be_trained_or_told_is_refused():
    for fields in ({"augmentation": 1.0}, {"augmentation": -0.1}):
        with pytest.raises(ConfigError, match="nothing would be seen of a frame"):
            dataclasses.replace(OBJECTIVE, **fields)
    with pytest.raises(ConfigError, match="single frames were to be trained with VideoDiT"):
        NextFrameMatching(nano.config().objective.system)
    channel = ChannelCondition(X, X[..., 0] > 0)
    with pytest.raises(ConfigError, match="it is told prompts and earlier frames"):
        model = MODEL.clone(ports=("text", "channel"))
        _apply(model, {}, X, T, Conditions(TOLD.text, channel))
