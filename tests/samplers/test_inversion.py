"""Inversion: exact where the step is linear, and nearer to it with every refinement elsewhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ConfigError
from jvdm.samplers import (
    DDIM,
    DDPM,
    DPMSolverPP2M,
    Euler,
    Heun,
    freeze,
    invert,
    lag_matrix,
    linspace_levels,
    make_denoiser,
    rectified_flow,
    reversed_rows,
    sample,
    synchronous,
    vp_cosine,
)
from tests.samplers.problems import mixture_denoiser, mixture_end, noise_like

FLOW, COSINE, KEY = rectified_flow(), vp_cosine(), jax.random.key(0)
NOISE = noise_like((2, 3, 16))
CLEAN = jnp.asarray(mixture_end(np.asarray(NOISE)), jnp.float32)


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def inverted(process, solver, matrix, refinements=0):
    denoise = mixture_denoiser(process)
    return invert(denoise, solver, process, matrix, CLEAN, KEY, refinements=refinements).x


@functools.partial(jax.jit, static_argnums=(0, 1))
def again(process, solver, matrix, x):
    return sample(mixture_denoiser(process), solver, process, matrix, x, KEY).x


@pytest.mark.parametrize(
    ("process", "solver"), [(FLOW, Euler()), (COSINE, DDIM())], ids=["flow", "cosine"]
)
def test_refined_inversion_and_sampling_return_the_clip(process, solver):
    matrix = synchronous(linspace_levels(40), 3)
    lost = [
        np.abs(again(process, solver, matrix, inverted(process, solver, matrix, n)) - CLEAN).mean()
        for n in (0, 1, 12)
    ]
    assert lost[1] < lost[0] / 3 and lost[2] < lost[0] / 50, lost


def test_the_error_is_of_first_order_without_refinement():
    lost = []
    for steps in (20, 40, 80):
        matrix = synchronous(linspace_levels(steps), 3)
        x = again(FLOW, DDIM(), matrix, inverted(FLOW, DDIM(), matrix))
        lost.append(np.abs(x - CLEAN).mean())
    order = np.log2(np.divide(lost[:-1], lost[1:]))
    assert ((order > 0.7) & (order < 1.5)).all(), order


def test_the_noise_is_that_of_the_exact_flow():
    matrix = synchronous(linspace_levels(80), 3)
    found = inverted(FLOW, Heun(), matrix, 2)
    np.testing.assert_allclose(found, NOISE, atol=0.05)
    assert np.abs(found - NOISE).mean() < 0.01


def test_known_data_and_noise_are_found_in_one_evaluation_a_step():
    eps = noise_like(CLEAN.shape, 3)

    def network(x, call, carry):
        return eps - CLEAN, carry

    denoise, matrix = make_denoiser(network, FLOW), lag_matrix(linspace_levels(4), 3, lag=2)
    end = invert(denoise, Euler(), FLOW, matrix, CLEAN, KEY).x
    np.testing.assert_allclose(end, eps, atol=1e-6)
    some = invert(denoise, Euler(), FLOW, freeze(matrix, [1]), CLEAN, KEY).x
    np.testing.assert_array_equal(some[:, 1], CLEAN[:, 1])
    np.testing.assert_allclose(some[:, [0, 2]], eps[:, [0, 2]], atol=1e-6)


def test_reversed_rows_go_from_clean_data_to_noise():
    matrix = lag_matrix(linspace_levels(4), 3, lag=2)
    back = reversed_rows(matrix)
    np.testing.assert_array_equal(back.index[::-1], matrix.index)
    np.testing.assert_array_equal(reversed_rows(back).start, matrix.start)


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (DPMSolverPP2M(), "DPMSolverPP2M cannot be inverted; it remembers"),
        (DDPM(), "DDPM cannot be inverted; it draws noise"),
        (DDIM(0.5), "DDIM cannot be inverted; it draws noise"),
    ],
)
def test_what_has_a_history_or_draws_noise_cannot_be_inverted(solver, message):
    matrix = synchronous(linspace_levels(2), 3)
    with pytest.raises(ConfigError, match=message):
        inverted(FLOW, solver, matrix)
    with pytest.raises(ConfigError, match="-1 refinements"):
        invert(mixture_denoiser(FLOW), DDIM(), FLOW, matrix, CLEAN, KEY, refinements=-1)
