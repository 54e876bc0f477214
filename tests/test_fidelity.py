import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm import fidelity
from jvdm.fidelity import BEST_PSNR, decibels, object_square_error, psnr, ssim


@pytest.fixture
def truth(rng):
    """Two clips with some structure."""
    line = np.linspace(0.2, 0.8, 24)
    base = line[None, None, :, None, None] * line[None, None, None, ::-1, None] + 0.2
    return jnp.asarray(base + 0.05 * rng.standard_normal((2, 3, 24, 24, 3)), jnp.float32)


def test_psnr_of_a_constant_error_is_its_logarithm(truth):
    np.testing.assert_allclose(psnr(truth + 0.1, truth), 20.0, atol=1e-3)
    np.testing.assert_allclose(psnr(truth, truth), BEST_PSNR)
    np.testing.assert_allclose(decibels(jnp.array([1e-2, 1e-4])), [20.0, 40.0], rtol=1e-5)


def test_clips_are_judged_one_by_one(truth):
    worse = truth.at[1].add(0.2)
    assert psnr(worse, truth)[0] == BEST_PSNR
    np.testing.assert_allclose(psnr(worse, truth)[1], -20 * np.log10(0.2), atol=1e-3)


def test_the_error_on_objects_looks_at_coloured_pixels_alone():
    grey = jnp.full((1, 2, 16, 16, 3), 0.5)
    truth = grey.at[:, :, 4:8, 4:8].set(jnp.array([0.9, 0.1, 0.1])[None, None, None, None])
    beside = truth.at[:, :, 12:, 12:].add(0.3)
    assert decibels(object_square_error(beside, truth))[0] == BEST_PSNR
    inside = truth.at[:, :, 4:8, 4:8].add(-0.1)
    np.testing.assert_allclose(decibels(object_square_error(inside, truth)), 20.0, atol=1e-3)
    assert fidelity.object_pixels(truth).sum() == 2 * 16


def test_ssim_of_equal_clips_is_one_and_noise_lowers_it(truth, rng):
    np.testing.assert_allclose(ssim(truth, truth), 1.0, atol=1e-5)
    noise = jnp.asarray(rng.standard_normal(truth.shape), jnp.float32)
    little, much = ssim(truth + 0.02 * noise, truth), ssim(truth + 0.2 * noise, truth)
    assert (little < 1.0).all() and (little > much + 0.2).all()


def test_ssim_is_symmetric_and_hardly_sees_a_small_shift_of_brightness(truth):
    other = truth[:, :, ::-1]
    np.testing.assert_allclose(ssim(truth, other), ssim(other, truth), atol=1e-5)
    brighter = truth + 0.05  # an error of 26 dB, all of it in the mean
    assert (ssim(brighter, truth) > 0.95).all()


def test_ssim_is_one_window_of_all_moments(truth):
    """XLA for GPUs compiled five of them, whose sums it joined, for minutes."""
    made = [one.primitive.name for one in jax.make_jaxpr(ssim)(truth, truth).eqns]
    assert made.count("slice") < 3 * 2 * 11 and made.count("optimization_barrier") == 2


def test_ssim_follows_its_formula_on_one_window(rng):
    x, y = rng.random((2, 11, 11)).astype(np.float32)
    offset = np.arange(-5, 6)
    weight = np.exp(-(offset**2) / 4.5)
    window = np.outer(weight, weight) / weight.sum() ** 2
    mean_x, mean_y = (window * x).sum(), (window * y).sum()
    var_x, var_y = (window * x**2).sum() - mean_x**2, (window * y**2).sum() - mean_y**2
    cross = (window * x * y).sum() - mean_x * mean_y
    light, contrast = 1e-4, 9e-4
    expected = (2 * mean_x * mean_y + light) / (mean_x**2 + mean_y**2 + light)
    expected *= (2 * cross + contrast) / (var_x + var_y + contrast)
    clips = [
        jnp.broadcast_to(jnp.asarray(z)[None, None, ..., None], (1, 1, 11, 11, 3)) for z in (x, y)
    ]
    np.testing.assert_allclose(ssim(*clips), expected, rtol=1e-4)
