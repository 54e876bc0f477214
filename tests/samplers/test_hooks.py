"""Hooks: exact where they say so, at any level per frame, without touching frozen frames."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ConfigError
from jvdm.samplers import (
    SOLVERS,
    BackProject,
    Blend,
    Call,
    Denoised,
    Euler,
    GradGuide,
    Hook,
    MomentMatch,
    PromptSwitch,
    advance,
    corrupt,
    freeze,
    hooked,
    lag_matrix,
    linspace_levels,
    make_denoiser,
    rectified_flow,
    sample,
    solver_named,
    start,
    synchronous,
    windowed,
)
from tests.samplers.problems import noise_like

FLOW, KEY, SHAPE = rectified_flow(), jax.random.key(0), (2, 3, 4, 4, 2)
X, SOURCE = noise_like(SHAPE), noise_like(SHAPE, 1)
LEVELS = linspace_levels(5)
WAVE = lag_matrix(LEVELS, 3, lag=2)
DENOISE = make_denoiser(lambda x, call, carry: (jnp.sin(2 * x), carry), FLOW)
LEFT = jnp.zeros((1, 1, 1, 4, 1)).at[..., :2, :].set(1.0)  # the left half is free
SOME = ("heun", "ddpm", "unipc2")


@functools.partial(jax.jit, static_argnums=0)
def run(name, hooks, matrix=WAVE, x=X):
    solver = hooked(solver_named(name), hooks)
    return sample(DENOISE, solver, FLOW, matrix, x, KEY).x


def test_no_hooks_are_the_solver_itself():
    assert hooked(Euler(), ()) is Euler() or hooked(Euler(), ()) == Euler()
    for hook in (Blend(SOURCE), MomentMatch(), BackProject(abs, abs, X), GradGuide(sum, X, 1.0)):
        assert isinstance(hook, Hook)
        assert hooked(SOLVERS["heun"], (hook,)).evaluations == 2


@pytest.mark.parametrize("name", SOME)
def test_what_is_kept_is_the_source_and_what_is_free_is_as_without(name):
    plain = run(name, ())
    got = run(name, (Blend(SOURCE, LEFT),))
    kept = np.broadcast_to(np.asarray(LEFT) == 0, SHAPE)
    np.testing.assert_array_equal(got[kept], SOURCE[kept])
    # The network mixes no places, so the other half is as if nothing had been kept.
    np.testing.assert_allclose(got[~kept], plain[~kept], atol=2e-6)
    everywhere = Blend(SOURCE, jnp.ones_like(LEFT))
    np.testing.assert_allclose(run(name, (everywhere,)), plain, atol=2e-6)


def test_a_frame_that_is_kept_is_at_the_level_of_its_own_column_in_every_row():
    hook = Blend(SOURCE, 0.0, noise=X)
    solver = hooked(solver_named("dpmpp_2m"), (hook,))
    state = start(solver, X, KEY)
    one = jax.jit(lambda state, row: advance(DENOISE, solver, FLOW, WAVE, state, row, 1))
    for row in range(WAVE.num_rows):
        state = one(state, row)
        t = jnp.broadcast_to(WAVE.levels[WAVE.index[row + 1]], (2, 3))
        np.testing.assert_allclose(state.x, corrupt(FLOW, SOURCE, t, X), atol=1e-6)


def test_held_noise_and_the_same_clip_make_no_seam():
    """A network that knows the clip: what it makes and what is put back are the same."""
    known = make_denoiser(lambda x, call, carry: (SOURCE, carry), FLOW, "x0")
    solver = hooked(Euler(), (Blend(SOURCE, LEFT, noise=X),))
    state = start(solver, X, KEY)
    state = advance(known, solver, FLOW, synchronous(LEVELS, 3), state, 0, 3)
    np.testing.assert_allclose(state.x, corrupt(FLOW, SOURCE, jnp.full((2, 3), 0.4), X), atol=1e-6)


def test_places_are_released_when_their_level_is_passed():
    release = jnp.linspace(0.0, 1.0, 4).reshape(1, 1, 1, 4, 1)
    got = run("euler", (Blend(SOURCE, release=release, noise=X),), synchronous(LEVELS, 3))
    np.testing.assert_array_equal(got[..., 0, :], SOURCE[..., 0, :])
    plain = run("euler", (), synchronous(LEVELS, 3))
    np.testing.assert_allclose(got[..., 3, :], plain[..., 3, :], atol=1e-6)
    # From the last level at or above its own on, a place goes its own way: .4 and .8 here.
    for column, level in ((1, 0.4), (2, 0.8)):
        matrix = synchronous(LEVELS[level + 1e-6 >= LEVELS], 3)
        begin = corrupt(FLOW, SOURCE, jnp.full((2, 3), level), X)
        alone = run("euler", (), matrix, begin)
        np.testing.assert_allclose(got[..., column, :], alone[..., column, :], atol=2e-6)


def test_a_recorded_run_is_followed_row_by_row_in_windows_too():
    matrix = windowed(lag_matrix(LEVELS, 3, lag=5))
    state, recorded = start(Euler(), X, KEY), []
    one = jax.jit(lambda state, row: advance(DENOISE, Euler(), FLOW, matrix, state, row, 1))
    for row in range(matrix.num_rows):
        state = one(state, row)
        recorded.append(state.x)
    follow = Blend(jnp.stack(recorded), 0.0, by_row=True)
    got = run("ddpm", (follow,), matrix)
    np.testing.assert_allclose(got, recorded[-1], atol=1e-6)


def test_frozen_frames_keep_their_bits():
    matrix = freeze(WAVE, [1])
    hooks = (MomentMatch(), Blend(SOURCE, LEFT))
    np.testing.assert_array_equal(run("heun", hooks, matrix)[:, 1], X[:, 1])


def said(x0=SOURCE):
    return Denoised(x0, X)


def test_moments_are_those_of_the_reference_per_channel_and_frame():
    call = Call.at(jnp.array([[0.9, 0.5, 0.1]] * 2))
    for reference in (None, 3 * noise_like((2, 1, 4, 4, 2), 5) + 1):
        got = MomentMatch(reference).edit(said(), X, call, FLOW)
        wanted = SOURCE[:, :1] if reference is None else reference
        for moment in (np.mean, np.std):
            expected = np.broadcast_to(moment(wanted, (2, 3)), (2, 3, 2))
            np.testing.assert_allclose(moment(got.x0, (2, 3)), expected, atol=1e-5)
    some = MomentMatch(low=0.2, high=0.6).edit(said(), X, call, FLOW).x0
    every = MomentMatch().edit(said(), X, call, FLOW).x0
    np.testing.assert_array_equal(some[:, [0, 2]], SOURCE[:, [0, 2]])
    np.testing.assert_allclose(some[:, 1], every[:, 1], atol=1e-6)
    half = MomentMatch(share=0.5).edit(said(), X, call, FLOW).x0
    np.testing.assert_allclose(half, (SOURCE + every) / 2, atol=1e-6)
    assert np.isfinite(MomentMatch().edit(said(0 * SOURCE), X, call, FLOW).x0).all()


def every_other(x0):
    return x0[:, ::2]


def put_back(frames):
    return jnp.zeros(SHAPE).at[:, ::2].set(frames)


def brightness(x0, target):
    return 0.5 * jnp.sum((x0.mean((2, 3, 4)) - target) ** 2)


@pytest.mark.parametrize("name", ["euler", "unipc2"])
def test_a_measurement_is_met_exactly_at_the_end(name):
    hook = BackProject(every_other, put_back, every_other(SOURCE))
    got = run(name, (hook,), synchronous(LEVELS, 3))
    np.testing.assert_allclose(got[:, ::2], SOURCE[:, ::2], atol=2e-6)
    half = BackProject(every_other, put_back, every_other(SOURCE), 0.5)
    edited = half.edit(said(0 * SOURCE), X, Call.at(jnp.ones((2, 3))), FLOW).x0
    np.testing.assert_allclose(edited[:, ::2], SOURCE[:, ::2] / 2, atol=1e-6)
    assert (edited[:, 1] == 0).all()


def test_an_energy_falls_along_its_slope():
    """The mean of 32 numbers: its slope is a 32nd, so a step of 32 reaches the target."""
    target = jnp.full((2, 3), 0.4)
    call = Call.at(jnp.full((2, 3), 0.5))
    got = GradGuide(brightness, target, 32.0).edit(said(), X, call, FLOW)
    np.testing.assert_allclose(got.x0.mean((2, 3, 4)), target, atol=1e-5)
    np.testing.assert_allclose(corrupt(FLOW, got.x0, call.t, got.eps), X, atol=1e-6)
    guided = run("dpmpp_2m", (GradGuide(brightness, target, 16.0),))
    plain = run("dpmpp_2m", ())
    assert brightness(guided, target) < 0.5 * brightness(plain, target)


def test_prompts_switch_at_their_rows_in_one_program():
    told = jnp.array([1.0, 2.0, 3.0])
    heard = []

    def denoiser_of(now):
        def denoise(x, call, carry):
            jax.debug.callback(lambda *seen: heard.append(seen), call.row.index, now)
            return Denoised(0 * x, x), carry

        return denoise

    switch = PromptSwitch((2, 5))
    denoise = switch.denoiser(told, denoiser_of)
    jax.jit(lambda: sample(denoise, Euler(), FLOW, WAVE, X, KEY).x)()
    jax.effects_barrier()
    assert [float(now) for _, now in sorted(map(tuple, map(np.asarray, heard)))] == [
        1,
        1,
        2,
        2,
        2,
        3,
        3,
        3,
        3,
    ]
    with pytest.raises(ConfigError, match="2 prompts switch at 2 rows"):
        switch.denoiser(told[:2], denoiser_of)
    for rows in ((3, 3), (0, 2), (4, 2)):
        with pytest.raises(ConfigError, match="ascending rows above 0"):
            PromptSwitch(rows)
