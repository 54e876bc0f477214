import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.samplers import corrupt, rectified_flow, vp_cosine
from jvdm.samplers.process import divide, expand, from_x0_eps, to_x0_eps
from tests.samplers.problems import noise_like

PROCESSES = {"flow": rectified_flow(), "cosine": vp_cosine(), "cosine s=.1": vp_cosine(s=0.1)}
KINDS = ("velocity", "x0", "eps", "v")
INSIDE = jnp.linspace(0.01, 0.99, 99)

each_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


def levels(*values: float):
    """One clip per value, two frames."""
    return jnp.broadcast_to(jnp.asarray(values, jnp.float32)[:, None], (len(values), 2))


def test_equal_processes_are_one_static_argument():
    assert vp_cosine() == vp_cosine(0.008) == vp_cosine(s=0.008)
    assert hash(vp_cosine()) == hash(vp_cosine(s=0.008))
    assert vp_cosine(0.01) != vp_cosine() != rectified_flow()

    @chex.assert_max_traces(1)
    def alpha(process, t):
        return process.alpha(t)

    compiled = jax.jit(alpha, static_argnums=0)
    compiled(vp_cosine(), jnp.ones(3))
    compiled(vp_cosine(s=0.008), jnp.zeros(3))


@each_process
def test_the_ends_are_exact(process):
    ends = jnp.array([0.0, 1.0])
    np.testing.assert_array_equal(process.alpha(ends), [1, 0])
    assert process.sigma(ends)[0] == 0
    np.testing.assert_allclose(process.sigma(ends)[1], 1, rtol=1e-6)
    assert process.t_max == 1
    np.testing.assert_array_equal(process.lam(ends)[0], np.inf)
    np.testing.assert_array_equal(process.lam(ends)[1], -np.inf)
    assert jnp.isfinite(process.d_alpha(ends)).all()
    assert jnp.isfinite(process.d_sigma(ends)).all()


@each_process
def test_noise_only_grows(process):
    t = jnp.linspace(0, 1, 257)
    assert (jnp.diff(process.alpha(t)) < 0).all()
    assert (jnp.diff(process.sigma(t)) > 0).all()
    assert (jnp.diff(process.lam(t)) < 0).all()


@each_process
def test_derivatives_are_the_derivatives(process):
    for function, derivative in (
        (process.alpha, process.d_alpha),
        (process.sigma, process.d_sigma),
    ):
        expected = jax.vmap(jax.grad(function))(INSIDE)
        np.testing.assert_allclose(derivative(INSIDE), expected, rtol=2e-4, atol=1e-5)


@each_process
def test_lambda_is_half_the_log_ratio_and_invertible(process):
    lam = process.lam(INSIDE)
    expected = jnp.log(process.alpha(INSIDE) / process.sigma(INSIDE))
    np.testing.assert_allclose(lam, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(process.inv_lam(lam), INSIDE, atol=2e-6)


def test_cosine_preserves_variance_and_agrees_with_the_paper():
    t, s = jnp.linspace(0, 1, 101), 0.008
    process = vp_cosine(s)
    np.testing.assert_allclose(process.alpha(t) ** 2 + process.sigma(t) ** 2, 1, rtol=1e-6)
    squared = np.cos((np.asarray(t, np.float64) + s) / (1 + s) * np.pi / 2) ** 2
    np.testing.assert_allclose(process.alpha(t) ** 2, squared / squared[0], atol=1e-6)


@each_process
def test_velocity_is_the_direction_of_corruption(process):
    t = jnp.broadcast_to(jnp.linspace(0.05, 0.95, 7)[:, None], (7, 2))
    x0, eps = noise_like((7, 2, 3)), noise_like((7, 2, 3), 1)
    path = lambda t: corrupt(process, x0, t, eps)  # noqa: E731
    _, direction = jax.jvp(path, (t,), (jnp.ones_like(t),))
    target = from_x0_eps(process, "velocity", x0, eps, t)
    np.testing.assert_allclose(target, direction, rtol=1e-3, atol=1e-4)


def test_flow_velocity_is_noise_minus_data():
    x0, eps = noise_like((2, 2, 3)), noise_like((2, 2, 3), 1)
    target = from_x0_eps(rectified_flow(), "velocity", x0, eps, levels(0.0, 0.7))
    np.testing.assert_array_equal(target, eps - x0)


@each_process
def test_clean_frames_are_corrupted_to_themselves(process):
    x0, eps = noise_like((1, 2, 3)), noise_like((1, 2, 3), 1)
    np.testing.assert_array_equal(corrupt(process, x0, levels(0.0), eps), x0)
    np.testing.assert_allclose(corrupt(process, x0, levels(1.0), eps), eps, rtol=1e-6)


@each_process
@pytest.mark.parametrize("kind", KINDS)
@hypothesis.given(t=st.floats(0.02, 0.98), seed=st.integers(0, 99))
def test_conversions_round_trip(process, kind, t, seed):
    x0, eps, t = noise_like((1, 2, 3), seed), noise_like((1, 2, 3), seed + 100), levels(t)
    x = corrupt(process, x0, t, eps)
    said = from_x0_eps(process, kind, x0, eps, t)
    x0_again, eps_again = to_x0_eps(process, kind, said, x, t)
    # Dividing by alpha or sigma magnifies rounding by at most 1 / 0.02.
    np.testing.assert_allclose(x0_again, x0, atol=1e-4)
    np.testing.assert_allclose(eps_again, eps, atol=1e-4)
    np.testing.assert_allclose(from_x0_eps(process, kind, x0_again, eps_again, t), said, atol=4e-4)


@each_process
@pytest.mark.parametrize("kind", KINDS)
def test_conversions_at_the_ends(process, kind):
    x0, eps = noise_like((2, 2, 3)), noise_like((2, 2, 3), 1)
    t = levels(0.0, 1.0)
    x = corrupt(process, x0, t, eps)

    def convert(x, t):
        said = from_x0_eps(process, kind, x0, eps, t)
        return to_x0_eps(process, kind, said, x, t)

    x0_again, eps_again = convert(x, t)
    np.testing.assert_allclose(x0_again[0], x0[0], atol=1e-6)
    np.testing.assert_allclose(eps_again[1], eps[1], atol=1e-6)
    # At t = 1 pure noise says nothing about the data, unless the prediction does.
    expected = jnp.zeros_like(x0[1]) if kind == "eps" else x0[1]
    np.testing.assert_allclose(x0_again[1], expected, atol=1e-6)
    assert jnp.isfinite(eps_again).all()
    gradient = jax.grad(lambda x: sum(jnp.sum(v) for v in convert(x, t)))(x)
    assert jnp.isfinite(gradient).all()


def test_expand_appends_axes():
    assert expand(jnp.ones((2, 3)), jnp.ones((2, 3, 4, 5))).shape == (2, 3, 1, 1)
    assert expand(jnp.ones((2, 3), bool), jnp.ones((2, 3))).shape == (2, 3)


def test_division_by_zero_is_zero_with_a_finite_gradient():
    quotient = lambda d: jnp.sum(divide(jnp.ones(2), d))  # noqa: E731
    value, gradient = jax.value_and_grad(quotient)(jnp.array([0.0, 2.0]))
    assert value == 0.5
    np.testing.assert_array_equal(gradient, [0, -0.25])
