import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jvdm.evaluation.estimates import Measure, estimate, gather, ratio


def test_the_interval_of_a_proportion_is_about_the_binomial_one():
    value = np.arange(400) < 300
    result = estimate(value, np.ones(400, bool))
    assert result.mean == 0.75 and result.count == 400
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    np.testing.assert_allclose([result.low, result.high], [0.75 - half, 0.75 + half], atol=0.006)


@pytest.mark.parametrize("clips", [4, 16, 64, 256])
def test_the_interval_of_a_share_covers_the_truth_whatever_that_is(clips):
    """The exact coverage: the chance of every outcome, summed over those that cover."""
    right = np.arange(clips + 1)
    found = [estimate(np.arange(clips) < count, np.ones(clips, bool)) for count in right]
    low, high = (np.array([getattr(one, end) for one in found])[:, None] for end in ("low", "high"))
    truth = np.linspace(0.001, 0.999, 999)
    covers = (low <= truth) & (truth <= high)
    coverage = (stats.binom.pmf(right[:, None], clips, truth) * covers).sum(axis=0)
    assert coverage.min() >= 0.95
    # No wider than that takes: at either end, what was seen or less or more is a chance of 2.5 %.
    np.testing.assert_allclose(stats.binom.cdf(right[:-1], clips, high[:-1, 0]), 0.025)
    np.testing.assert_allclose(stats.binom.sf(right[:-1], clips, low[1:, 0]), 0.025)
    assert low[0] == 0.0 and high[-1] == 1.0


def test_objects_of_a_clip_do_not_make_a_share_sharper():
    right = np.arange(16) < 12
    one = estimate(right, np.ones(16, bool))
    three = estimate(np.repeat(right[:, None], 3, 1), np.ones((16, 3), bool))
    assert three.count == 48 and (one.low, one.high) == pytest.approx((three.low, three.high))
    half = estimate(right, np.arange(16) % 2 == 0)
    assert half.high - half.low > one.high - one.low


def test_what_is_not_counted_does_not_matter():
    counted = np.array([[True, False], [True, True]])
    value = np.array([[1.0, np.nan], [0.0, 2.0]])
    result = estimate(value, counted)
    assert result.mean == pytest.approx(1.0) and result.count == 3
    assert estimate(value, 0 * counted).count == 0


def test_objects_of_a_clip_are_resampled_together():
    """Three copies of each clip's value tell no more than one."""
    value = np.random.default_rng(1).random(60)
    tripled = np.repeat(value[:, None], 3, 1)
    one, three = estimate(value, np.ones(60)), estimate(tripled, np.ones((60, 3)))
    assert (one.low, one.high) == pytest.approx((three.low, three.high))


def test_the_interval_of_a_mean_is_about_the_normal_one(rng):
    value = rng.standard_normal(2000)
    found, half = estimate(value, np.ones(2000)), 1.96 * value.std() / np.sqrt(2000)
    # An end of 1,000 resamplings is known to 5 % of the half width; 90 % would be 16 % less.
    np.testing.assert_allclose(found.mean - found.low, half, rtol=0.1)
    np.testing.assert_allclose(found.high - found.mean, half, rtol=0.1)


def test_a_ratio_of_paired_clips_is_sharper_than_its_parts(rng):
    bottom = rng.random(100) + 0.5
    result = ratio(1.1 * bottom, bottom)
    assert result.mean == pytest.approx(1.1)
    assert result.high - result.low < 1e-9


def test_batches_are_joined():
    parts = [{"a": Measure(jnp.arange(2) + k, jnp.array([True, False]))} for k in (0, 10)]
    joined = gather(parts)["a"]
    assert joined.value.tolist() == [0, 1, 10, 11]
    assert joined.counted.tolist() == [True, False, True, False]
