"""Flow maps of normal data, which are linear and known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ConfigError
from jvdm.samplers import (
    Consistency,
    FlowMap,
    lag_matrix,
    linspace_levels,
    make_denoiser,
    rectified_flow,
    sample,
    shift_levels,
    synchronous,
    trig_flow,
)
from jvdm.samplers.process import expand
from tests.samplers.problems import noise_like

KEY, MEAN, STD = jax.random.key(0), 0.7, 0.4
PROCESSES = {"velocity": rectified_flow(), "v": trig_flow()}
each_process = pytest.mark.parametrize("kind", PROCESSES)


def landed(process, x, t, t_next):
    """Where the exact flow takes `x` of normal data."""
    (alpha, sigma), (alpha_next, sigma_next) = (
        (expand(process.alpha(level), x), expand(process.sigma(level), x)) for level in (t, t_next)
    )
    spread, spread_next = (
        jnp.hypot(a * STD, s) for a, s in ((alpha, sigma), (alpha_next, sigma_next))
    )
    return alpha_next * MEAN + spread_next / spread * (x - alpha * MEAN)


def network(process, kind):
    """A network that has learned it; the trigonometric process tells it angles."""
    unit = 1.0 if kind == "velocity" else np.pi / 2

    def predict(x, call, carry):
        length = expand(call.t - call.t_next, x)
        x_next = landed(process, x, call.t / unit, call.t_next / unit)
        if kind == "velocity":
            return (x - x_next) / length, carry
        return (jnp.cos(length) * x - x_next) / jnp.sin(length), carry

    return make_denoiser(predict, process, kind)


def run(kind, solver, matrix, x):
    process = PROCESSES[kind]
    return jax.jit(lambda x: sample(network(process, kind), solver, process, matrix, x, KEY).x)(x)


@each_process
def test_one_jump_lands_on_the_exact_solution_and_more_jumps_compose(kind):
    process = PROCESSES[kind]
    x = noise_like((2, 3, 8))
    exact = landed(process, x, *(jnp.full((2, 3), level) for level in (1.0, 0.0)))
    for matrix in (
        synchronous(linspace_levels(1), 3),
        synchronous(shift_levels(linspace_levels(2), 3.0), 3),
        lag_matrix(linspace_levels(5), 3, lag=2),
    ):
        got = run(kind, FlowMap(), matrix, x)
        np.testing.assert_allclose(got, exact, atol=1e-6)  # predictions are float32


@pytest.mark.parametrize("kind, gamma", [("velocity", 0.6), ("v", 1.0)])
def test_fresh_noise_keeps_the_law_of_every_level(kind, gamma):
    """From right marginals to right marginals, whatever part of the noise is new."""
    x = noise_like((1, 1, 40_000))
    got = np.asarray(run(kind, FlowMap(gamma), synchronous(linspace_levels(4), 1), x))
    np.testing.assert_allclose([got.mean(), got.std()], [MEAN, STD], atol=5 * STD / 200)
    process, t = PROCESSES[kind], linspace_levels(4)[1:4]  # ends of jumps that draw noise
    noise, data = process.sigma(t) ** 2, (process.alpha(t) * STD) ** 2
    kept = np.prod(np.sqrt(1 - gamma**2 * noise / (noise + data)))
    found = np.corrcoef(got.ravel(), np.asarray(x).ravel())[0, 1]
    np.testing.assert_allclose(found, kept, atol=5 / 200)


def test_all_noise_fresh_is_consistency_sampling():
    process, kind = PROCESSES["velocity"], "velocity"
    trained = network(process, kind)

    def to_clean(x, call, carry):
        return trained(x, call._replace(t_next=jnp.zeros_like(call.t)), carry)

    matrix, x = synchronous(linspace_levels(4), 3), noise_like((2, 3, 8))
    expected = sample(to_clean, Consistency(), process, matrix, x, KEY).x
    np.testing.assert_allclose(run(kind, FlowMap(1.0), matrix, x), expected, atol=1e-5)


def test_a_share_outside_is_refused():
    with pytest.raises(ConfigError, match=r"gamma = 1\.5"):
        FlowMap(1.5)
