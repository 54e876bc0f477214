"""EDM against algorithm 2 of Karras et al. (arXiv:2206.00364), written out for single numbers.

The same formulas are `sample_euler` and `sample_heun` of k-diffusion, whose `sample_dpmpp_2m` is
written out too.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.keys import addressed_normal, named
from jvdm.samplers import Denoised, edm, freeze, from_index, karras_levels, sample
from jvdm.samplers.solvers import EDM, DPMSolverPP2M

PROCESS, KEY = edm(t_max=100.0), jax.random.key(3)
STEPS, FRAMES, FROZEN = 6, 4, 1
CHURN = {"s_churn": 1.5, "s_min": 0.05, "s_max": 20.0, "s_noise": 1.007}  # a row of their table 5


def denoised(x, t):
    return (x + math.sin(x)) / (2 + t**2)


def dpmpp_2m(x, levels, normal):
    """Returns the sample, line by line as in k-diffusion."""
    h_last, old = 0.0, None
    for sigma, sigma_next in itertools.pairwise(levels):
        now = denoised(x, sigma)
        h = math.log(sigma / sigma_next) if sigma_next else math.inf
        mixed = now
        if old is not None and sigma_next:
            r = h_last / h
            mixed = (1 + 1 / (2 * r)) * now - (1 / (2 * r)) * old
        x, old, h_last = sigma_next / sigma * x - math.expm1(-h) * mixed, now, h
    return x


def algorithm_2(x, levels, normal, corrector, s_churn=0.0, s_min=0.0, s_max=math.inf, s_noise=1.0):
    """Returns the sample, line by line as in the paper."""

    count = len(levels) - 1
    for i in range(count):
        t, t_next = levels[i], levels[i + 1]
        gamma = min(s_churn / count, math.sqrt(2) - 1) if s_min <= t <= s_max else 0.0
        t_hat = t + gamma * t
        x_hat = x + math.sqrt(t_hat**2 - t**2) * s_noise * normal[i]
        d = (x_hat - denoised(x_hat, t_hat)) / t_hat
        x = x_hat + (t_next - t_hat) * d
        if t_next != 0 and corrector:
            d_next = (x - denoised(x, t_next)) / t_next
            x = x_hat + (t_next - t_hat) * (d + d_next) / 2
    return x


def network(x, call, carry):
    """The same denoiser for latents; its samples stay apart to the end."""
    x0 = (x + jnp.sin(x)) / (2 + call.t[..., None] ** 2)
    return Denoised(x0, (x - x0) / call.t[..., None]), carry


MUCH = {**CHURN, "s_churn": 80.0}
CASES = {
    "euler": (EDM(False, **CHURN), functools.partial(algorithm_2, corrector=False, **CHURN)),
    "heun, capped": (EDM(True, **MUCH), functools.partial(algorithm_2, corrector=True, **MUCH)),
    "dpmpp_2m": (DPMSolverPP2M(), dpmpp_2m),
}


@pytest.mark.parametrize("name", CASES)
def test_every_frame_is_the_published_algorithm_on_its_own_grid(name):
    solver, reference = CASES[name]
    tops = (80.0, 40.0, 20.0, 10.0)  # each frame has its own levels, and its own rows
    grids = np.stack([karras_levels(STEPS, 0.02, top) for top in tops], axis=1)
    index = np.clip(np.arange(STEPS + 4)[:, None] - np.arange(FRAMES), 0, STEPS)
    matrix = freeze(from_index(jnp.asarray(grids), index), (FROZEN,), level=2)
    with jax.enable_x64(True):
        x = grids[0].astype(float)[None, :, None] * np.random.default_rng(0).normal(size=(2, 4, 3))
        state = sample(network, solver, PROCESS, matrix, jnp.asarray(x), KEY)
    got = np.asarray(state.x)
    np.testing.assert_array_equal(got[:, FROZEN], x[:, FROZEN])
    key = jax.random.fold_in(named(KEY, "solver noise"), 0)
    address = (jnp.arange(2), jnp.arange(FRAMES), (3,))
    normal = np.stack(
        [addressed_normal(key, *address, jnp.full((2, FRAMES), i)) for i in range(STEPS)],
        axis=-1,
        dtype=float,
    )
    for place in np.ndindex(x.shape):
        if place[1] != FROZEN:
            levels = grids[:, place[1]].astype(float)
            expected = reference(x[place], levels, normal[place])
            np.testing.assert_allclose(got[place], expected, rtol=1e-9, atol=1e-9)
