"""Exponential integrators: their integrals, polynomials of data, estimates that are missing."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from jvdm.samplers.solvers.exponential import Past, Span, add_past, node_weights, phi

H = (0.01, 0.5, 0.99, 1.01, 3.0, 9.0)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_phi_is_its_integral_on_both_sides_of_the_series(order):
    def integrand(place, h):
        return math.exp(-(1 - place) * h) * place ** (order - 1) / math.factorial(order - 1)

    expected = [quad(integrand, 0, 1, args=(h,))[0] for h in H]
    np.testing.assert_allclose(phi(order, jnp.array([H]))[0], expected, rtol=1e-5)


@pytest.mark.parametrize("h", [0.3, 2.0])
@pytest.mark.parametrize("degree", [1, 2, 3])
def test_data_that_are_a_polynomial_in_lambda_are_integrated_exactly(degree, h):
    coefficients = np.array([0.4, -0.7, 0.5, 0.3])[: degree + 1]

    def data(u):
        return sum(c * u**power for power, c in enumerate(coefficients))

    nodes = (-0.8 * h, -1.5 * h, h)[:degree]  # two before, and one at the end as correctors have
    full = [jnp.full((1, 1), value) for value in (1.0, 0.0, 0.2, h)]
    past = [Past(jnp.full((1, 1), 0.2 + u), jnp.full((1, 1, 1), data(u))) for u in nodes]
    x0 = jnp.full((1, 1, 1), data(0.0))
    change = add_past(jnp.zeros((1, 1, 1)), Span(*full), x0, past, rule="exact")
    exact = quad(lambda u: math.exp(u - h) * (data(u) - data(0.0)), 0, h)[0]
    np.testing.assert_allclose(float(change[0, 0, 0]), exact, rtol=2e-5)


def test_estimates_that_are_missing_are_not_used_nor_any_behind_them():
    h, offsets = jnp.full((1, 1), 0.5), [jnp.full((1, 1), -u) for u in (0.4, 0.9)]
    yes, no = jnp.ones((1, 1), bool), jnp.zeros((1, 1), bool)
    alone = node_weights(h, offsets[:1], [yes])
    first, second = node_weights(h, offsets, [yes, no])
    np.testing.assert_array_equal(first, alone[0])
    assert not second.any()
    assert not any(weight.any() for weight in node_weights(h, offsets, [no, yes]))
    assert all(weight.all() for weight in node_weights(h, offsets, [yes, yes]))


def test_a_step_from_pure_noise_is_the_trapezoid_of_its_ends():
    infinite, yes = jnp.full((1, 1), jnp.inf), jnp.ones((1, 1), bool)
    end, before = node_weights(infinite, [infinite, -infinite], [yes, yes])
    assert (float(end[0, 0]), float(before[0, 0])) == (0.5, 0.0)
    assert not node_weights(infinite, [-infinite], [yes])[0].any()
