"""Projected guidance: its geometry, and what frames remember of their own steps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.samplers import (
    Call,
    ClassifierFree,
    Denoised,
    Euler,
    Heun,
    PerFrame,
    Projected,
    freeze,
    guided,
    guided_carry,
    initial_noise,
    lag_matrix,
    linspace_levels,
    pad_rows,
    rectified_flow,
    sample,
    stream_init,
    stream_rows,
    stream_step,
    synchronous,
    windowed,
)
from jvdm.samplers.process import expand
from tests.samplers.problems import noise_like

FLOW, KEY, SHAPE = rectified_flow(), jax.random.key(0), (2, 4, 6)
X, WITHOUT, GIVEN = (noise_like(SHAPE, seed) for seed in range(3))
T = jnp.full((2, 4), 0.5)
CALL = Call.at(T, 0.5 * T)
SAID = [Denoised(x0, (X - 0.5 * x0) / 0.5) for x0 in (WITHOUT, GIVEN)]
MOMENTUM = Projected(3.0, along_share=0.3, norm=1.5, momentum=-0.6)


def combined(rule, said=SAID, x=X):
    return rule.combine(said, x, CALL, FLOW)


def inner(one, other):
    return np.sum(np.asarray(one * other, np.float64), axis=2)


def test_all_of_the_difference_is_classifier_free_guidance():
    got, expected = combined(Projected(3.0, 1.0)), combined(ClassifierFree(3.0))
    np.testing.assert_allclose(got.x0, expected.x0, atol=2e-6)
    np.testing.assert_allclose(got.eps, expected.eps, atol=1e-5)


def test_what_is_added_is_orthogonal_to_the_data_of_each_frame():
    change = combined(Projected(3.0)).x0 - GIVEN
    np.testing.assert_allclose(inner(change, GIVEN), 0, atol=1e-5)
    plain = combined(ClassifierFree(3.0)).x0 - GIVEN
    np.testing.assert_allclose(inner(change, plain), inner(change, change), rtol=1e-4)


def test_no_frame_is_moved_further_than_the_norm_allows():
    change = combined(Projected(3.0, 1.0, norm=3.5)).x0 - GIVEN
    plain = combined(ClassifierFree(3.0)).x0 - GIVEN
    lengths, before = (np.sqrt(inner(part, part)) for part in (change, plain))
    np.testing.assert_allclose(lengths, np.minimum(before, 2 * 3.5), rtol=1e-5)
    assert (before > 7.1).any() and (before < 6.9).any()
    same = combined(Projected(3.0, norm=1.0), [SAID[1], SAID[1]])
    np.testing.assert_allclose(same.x0, GIVEN, atol=1e-6)


def test_frames_have_no_say_in_each_other():
    others = [Denoised(*(part.at[:, 1:].multiply(9.0) for part in said)) for said in SAID]
    changed = combined(Projected(3.0, norm=1.5), others).x0
    np.testing.assert_array_equal(changed[:, 0], combined(Projected(3.0, norm=1.5)).x0[:, 0])


def branches(names):
    """A network that mixes no frames; the prompt adds what is at its place in the noise."""

    def denoise(x, call, carry):
        halves = jnp.split(x, len(names))
        shifts = {"unconditional": 0.0, "prompt": 0.7}
        x0 = jnp.concatenate(
            [jnp.sin(2 * x + shifts[n]) for n, x in zip(names, halves, strict=True)]
        )
        alpha, sigma = expand(FLOW.alpha(call.t), x), expand(FLOW.sigma(call.t), x)
        eps = (x - alpha * x0) / jnp.where(sigma == 0, 1.0, sigma)
        return Denoised(x0, eps), carry

    return denoise


def memory_of(rule, frames=4):
    return guided_carry(rule, lambda names: None, (2, frames, 6))


@pytest.mark.parametrize("execution", ["batched", "sequential"])
def test_a_frame_remembers_the_steps_in_which_it_moved(execution):
    rule = dataclasses.replace(MOMENTUM, execution=execution)
    follow = jax.jit(guided(rule, branches, FLOW))
    frozen = jnp.array([[False, True, False, False]])
    call = CALL._replace(t_next=jnp.where(frozen, T, 0.2))
    _, carry = follow(X, call, memory_of(rule))
    said = branches(("unconditional", "prompt"))(
        jnp.concatenate([X, X]), call._replace(t=jnp.concatenate([T, T])), None
    )[0]
    first = np.subtract(*np.split(said.x0, 2)[::-1])
    np.testing.assert_allclose(carry[0].values, np.where(frozen[..., None], 0, first), atol=1e-6)
    _, carry = follow(X, call, carry)
    expected = np.where(frozen[..., None], 0, first - 0.6 * first)
    np.testing.assert_allclose(carry[0].values, expected, atol=1e-6)


@functools.cache
def runner(solver):
    denoise = guided(MOMENTUM, branches, FLOW)
    carry = memory_of(MOMENTUM)
    return jax.jit(lambda matrix: sample(denoise, solver, FLOW, matrix, X, KEY, carry=carry))


@pytest.mark.parametrize("solver", [Euler(), Heun()], ids=str)
def test_runs_do_not_depend_on_the_other_frames_of_the_matrix(solver):
    levels = linspace_levels(5)
    matrices = [pad_rows(lag_matrix(levels, 4, lag), 20) for lag in (0, 2, 5)]
    together, wave, in_turn = (runner(solver)(matrix) for matrix in matrices)
    np.testing.assert_array_equal(together.x, wave.x)
    np.testing.assert_array_equal(together.x, in_turn.x)
    np.testing.assert_array_equal(together.carry[0].values, in_turn.carry[0].values)
    alone = runner(solver)(freeze(matrices[1], [0]))
    assert (alone.carry[0].values[:, 0] == 0).all() and (alone.x[:, 0] == X[:, 0]).all()
    assert not np.array_equal(together.x, runner_without(solver)(matrices[0]).x)


def runner_without(solver):
    rule = dataclasses.replace(MOMENTUM, momentum=0.0)
    denoise = guided(rule, branches, FLOW)
    return jax.jit(lambda matrix: sample(denoise, solver, FLOW, matrix, X, KEY))


def test_a_window_remembers_at_its_own_place():
    matrix = lag_matrix(linspace_levels(3), 4, lag=3)
    whole, in_windows = (runner(Euler())(m) for m in (matrix, windowed(matrix)))
    np.testing.assert_allclose(whole.x, in_windows.x, atol=2e-6)
    np.testing.assert_allclose(whole.carry[0].values, in_windows.carry[0].values, atol=2e-6)


def test_in_a_stream_memory_moves_on_with_its_frames():
    """As in one long run of the same wave; the network mixes no frames."""
    rows = stream_rows(linspace_levels(4), lag=2)
    denoise = guided(MOMENTUM, branches, FLOW)
    carry = memory_of(MOMENTUM, rows.buffer)
    state = stream_init(denoise, Euler(), FLOW, rows, (2, 6), KEY, carry=carry)
    emitted = []
    for _ in range(4):
        state, chunk = stream_step(denoise, Euler(), FLOW, rows, state)
        assert isinstance(state.run.carry[0], PerFrame)
        emitted.append(chunk)
    noise = initial_noise(KEY, jnp.arange(2), 4, (6,))
    matrix, carry = synchronous(linspace_levels(4), 4), memory_of(MOMENTUM)
    long = sample(denoise, Euler(), FLOW, matrix, noise, KEY, carry=carry)
    np.testing.assert_allclose(jnp.concatenate(emitted, 1), long.x, atol=3e-6)
