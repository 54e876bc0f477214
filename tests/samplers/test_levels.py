import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jvdm.errors import ConfigError
from jvdm.samplers import linspace_levels, shift_levels
from jvdm.samplers.levels import beta_levels, exp_shift_levels, resolution_mu, stretch_to_terminal

steps = st.sampled_from([1, 3, 16, 200])
shifts = st.floats(0.1, 20)


@hypothesis.given(steps, shifts)
def test_grids_descend_from_exactly_one_to_exactly_zero(num_steps, shift):
    levels = shift_levels(linspace_levels(num_steps), shift)
    assert levels.dtype == jnp.float32 and levels.shape == (num_steps + 1,)
    assert levels[0] == 1 and levels[-1] == 0
    assert (np.diff(levels) < 0).all()


def test_equal_spacing_and_largest_level():
    levels = linspace_levels(5, t_max=0.8)
    np.testing.assert_allclose(np.diff(levels), -0.16, rtol=1e-5)
    assert levels[0] == np.float32(0.8)


@hypothesis.given(steps)
def test_shift_one_changes_no_bit(num_steps):
    levels = linspace_levels(num_steps)
    np.testing.assert_array_equal(shift_levels(levels, 1.0), levels)


@hypothesis.given(shifts, shifts)
def test_shifts_compose_to_their_product(first, second):
    levels = linspace_levels(20)
    twice = shift_levels(shift_levels(levels, first), second)
    np.testing.assert_allclose(twice, shift_levels(levels, first * second), atol=1e-6)


@hypothesis.given(shifts)
def test_shift_scales_the_noise_to_signal_ratio(shift):
    levels = linspace_levels(10)[1:-1]
    shifted = shift_levels(levels, shift)
    ratio = shifted / (1 - shifted) / (levels / (1 - levels))
    np.testing.assert_allclose(ratio, shift, rtol=1e-4)


def test_shift_may_be_traced():
    levels = linspace_levels(4)
    traced = jax.jit(shift_levels)(levels, jnp.float32(3.0))
    np.testing.assert_allclose(traced, shift_levels(levels, 3.0), rtol=1e-6)


def test_no_steps_is_refused():
    with pytest.raises(ConfigError, match="0 denoising steps.*use 1 or more"):
        linspace_levels(0)


def test_exponential_shift_multiplies_the_odds_of_noise():
    levels = linspace_levels(10)
    mu = resolution_mu(1024)
    inner = np.asarray(levels[1:-1], np.float64)
    expected = np.exp(mu) / (np.exp(mu) + 1 / inner - 1)
    shifted = exp_shift_levels(levels, mu)
    np.testing.assert_allclose(shifted[1:-1], expected, rtol=1e-5)
    assert shifted[0] == 1 and shifted[-1] == 0
    assert (resolution_mu(256), round(resolution_mu(4096), 9)) == (0.5, 1.15)


@hypothesis.given(steps, st.floats(0.2, 3), st.floats(0.2, 3))
def test_beta_levels_are_equally_likely_apart(num_steps, alpha, beta):
    levels = np.asarray(beta_levels(num_steps, 0.02, 0.98, alpha, beta), np.float64)
    share = stats.beta.cdf(np.clip((levels[:-1] - 0.02) / 0.96, 0, 1), alpha, beta)
    # float32 levels near 0 and 1, where half a last bit is a share of its power.
    inner = slice(1, -1)
    np.testing.assert_allclose(share[inner], np.linspace(1, 0, num_steps)[inner], atol=0.03)
    assert levels[0] == np.float32(0.98) and levels[-1] == 0
    assert num_steps == 1 or levels[-2] == np.float32(0.02)


@hypothesis.given(shifts, st.floats(0.01, 0.6))
def test_stretching_hits_the_terminal_level(shift, terminal):
    levels = stretch_to_terminal(shift_levels(linspace_levels(12), shift), terminal)
    np.testing.assert_allclose(levels[-2], terminal, atol=1e-6)
    assert levels[0] == 1 and levels[-1] == 0 and (np.diff(levels) < 0).all()


@pytest.mark.parametrize("steps, terminal", [(1, 0.1), (8, 0.0), (8, 1.0)])
def test_impossible_terminal_levels_are_refused(steps, terminal):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        stretch_to_terminal(linspace_levels(steps), terminal)
