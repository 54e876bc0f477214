import numpy as np
import pytest

from jvdm.evaluation.frechet import MAX_DIRECTIONS, directions, frechet_distance, halves_distance


def exactly(rng, count, mean, covariance):
    """A sample whose mean and covariance are exactly those wanted."""
    x = rng.standard_normal((count, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return x @ np.linalg.cholesky(covariance).T + mean


def test_equal_sets_have_no_distance(rng):
    x = rng.standard_normal((50, 6))
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-9)


def test_gaussians_with_one_basis_have_the_closed_form(rng):
    mean = np.array([1.0, -2.0, 0.5])
    one = exactly(rng, 200, 0 * mean, np.diag([1.0, 4.0, 9.0]))
    two = exactly(rng, 300, mean, np.diag([4.0, 1.0, 9.0]))
    # Per axis: difference of means squared, plus difference of deviations squared.
    assert frechet_distance(one, two) == pytest.approx((mean**2).sum() + 1.0 + 1.0)
    assert frechet_distance(two, one) == pytest.approx(frechet_distance(one, two))


def test_rotating_both_sets_changes_nothing(rng):
    one, two = rng.standard_normal((80, 5)), 1.0 + 2.0 * rng.standard_normal((90, 5))
    turn = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    assert frechet_distance(one @ turn, two @ turn) == pytest.approx(frechet_distance(one, two))


def test_few_clips_are_compared_in_few_directions(rng):
    features = rng.standard_normal((256, 100)) * np.linspace(1.0, 3.0, 100)
    mean, axes = directions(features)
    assert axes.shape == (100, MAX_DIRECTIONS)
    assert directions(rng.standard_normal((40, 100)))[1].shape[1] == 10
    np.testing.assert_allclose(np.cov(((features - mean) @ axes).T), np.eye(32), atol=1e-6)


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_directions_in_which_nothing_varies_do_not_count_in_any_unit(rng, unit):
    truth = unit * rng.standard_normal((256, 5)) @ rng.standard_normal((5, 40))
    assert directions(truth)[1].shape == (40, 5)
    assert directions(unit * rng.standard_normal((2000, 40)))[1].shape == (40, 40)  # all from here


def test_a_shifted_set_is_far_above_the_floor(rng):
    truth = rng.standard_normal((256, 40))
    alike, other = rng.standard_normal((256, 40)), rng.standard_normal((256, 40)) + 1.0
    floor = halves_distance(truth, truth)
    assert 0.5 * floor < halves_distance(alike, truth) < 1.6 * floor
    assert halves_distance(other, truth) > floor + 20
