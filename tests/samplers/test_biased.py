"""A bridge from data to a condition: the network is shown it, a run holds what is left."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ConfigError
from jvdm.samplers import (
    Call,
    biased,
    corrupt,
    explicit_levels,
    lag_matrix,
    make_denoiser,
    rectified_flow,
    sample,
    solver_named,
    synchronous,
    vp_linear,
    vp_scaled_linear,
    windowed,
)
from jvdm.samplers.process import from_x0_eps
from tests.samplers.problems import mixture_denoiser, mixture_end, noise_like

LOW, HIGH = 0.2, 0.8
TABLE = vp_scaled_linear()
PROCESS = biased(TABLE, LOW, HIGH)
X0, EPS, CONDITION = (noise_like((2, 4, 3), seed) for seed in (0, 1, 2))
LEVELS = explicit_levels([1.0, 0.8, 0.6, 0.4, 0.2, 0.1])


def bridge(t):
    """The definition, with all three shares."""
    w = np.clip((np.asarray(t) - LOW) / (HIGH - LOW), 0, 1)[..., None]
    alpha, sigma = (np.asarray(f(t))[..., None] for f in (TABLE.alpha, TABLE.sigma))
    return alpha * ((1 - w) * X0 + w * CONDITION) + sigma * EPS


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m", "unipc2"])
@pytest.mark.parametrize("kind", ["velocity", "x0"])
def test_the_network_is_shown_the_bridge_at_every_level(solver, kind):
    """For data and noise that are known, every step of a run lies on its definition."""
    shown = []

    def network(x, call, carry):
        t = (call.t + 1) / 1000  # it is told the step of the table
        jax.debug.callback(lambda *seen: shown.append(seen), x, t)
        return from_x0_eps(PROCESS, kind, X0, EPS, t), carry

    denoise = make_denoiser(network, PROCESS, kind, CONDITION)
    matrix = lag_matrix(LEVELS[1:], 4, lag=1)
    x = corrupt(PROCESS, X0, jnp.full((2, 4), 0.8), EPS)
    end = sample(denoise, solver_named(solver), PROCESS, matrix, x, jax.random.key(0)).x
    jax.effects_barrier()
    assert len(shown) == matrix.num_rows
    for seen, t in shown:
        noisy = np.asarray(t) > 0.002  # finished frames count as the first step of the table
        np.testing.assert_allclose(seen[noisy], bridge(t)[noisy], atol=2e-5)
    np.testing.assert_allclose(end, X0, atol=2e-5)


def test_it_is_noise_and_condition_alone_from_the_upper_level_on_and_plain_up_to_the_lower():
    t = jnp.array([0.8, 0.9, 1.0])
    assert (PROCESS.alpha(t) == 0).all()
    np.testing.assert_array_equal(PROCESS.pull(t), TABLE.alpha(t))
    t = jnp.array([0.0, 0.1, 0.2])
    np.testing.assert_array_equal(PROCESS.alpha(t), TABLE.alpha(t))
    assert (PROCESS.pull(t) == 0).all() and (PROCESS.sigma(t) == TABLE.sigma(t)).all()


def test_the_share_of_the_condition_is_that_of_the_paper_where_plain_ddim_has_a_quarter():
    """UniVG's super-resolution: 0.266 of the difference at step 280 of 1000, not 0.062."""
    t = jnp.float32(0.281)
    share = biased(vp_linear(), 0.0, 0.7).pull(t)
    np.testing.assert_allclose(share, 0.266, atol=2e-3)


def test_a_run_ends_where_the_exact_flow_does():
    process = biased(rectified_flow(), 0.0, 1.0)
    noise = noise_like((1, 2, 16))
    end = mixture_end(np.asarray(noise))
    denoise, solver = mixture_denoiser(process), solver_named("dpmpp_2m")

    @functools.partial(jax.jit, static_argnums=0)
    def run(steps):
        matrix = synchronous(jnp.linspace(1.0, 0.0, steps + 1), 2)
        return sample(denoise, solver, process, matrix, noise, jax.random.key(0)).x

    coarse, fine = (np.abs(run(steps) - end).mean() for steps in (20, 80))
    assert fine < 2e-3 and fine < coarse / 6


def test_a_window_sees_its_part_of_the_condition():
    seen = []

    def network(x, call, carry):
        jax.debug.callback(lambda *values: seen.append(values), x, call.row.start)
        return jnp.zeros_like(x), carry

    denoise = make_denoiser(network, PROCESS, "eps", CONDITION)
    matrix = windowed(lag_matrix(jnp.array([0.8, 0.0]), 4, lag=1))
    sample(denoise, solver_named("ddim"), PROCESS, matrix, 0 * X0, jax.random.key(0))
    jax.effects_barrier()
    assert [int(first) for _, first in seen] == [0, 1, 2, 3]
    for x, first in seen:
        expected = TABLE.alpha(jnp.float32(0.8)) * CONDITION[:, first : first + 1]
        np.testing.assert_allclose(x, expected, rtol=1e-5)


def test_a_condition_is_needed_and_levels_in_order():
    denoise = make_denoiser(lambda x, call, carry: (x, carry), PROCESS)
    with pytest.raises(ConfigError, match="leads to a condition.*there is none"):
        denoise(X0, Call.at(jnp.ones((2, 4))), None)
    for low, high in ((0.5, 0.5), (-0.1, 0.5), (0.5, 1.1)):
        with pytest.raises(ConfigError, match="use 0 <= low < high"):
            biased(rectified_flow(), low, high)
    assert biased(TABLE, 0.1, 0.8) == biased(TABLE, 0.1, 0.8) != PROCESS
