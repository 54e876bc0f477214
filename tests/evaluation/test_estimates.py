import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.evaluation.estimates import Measure, estimate, gather, ratio


def test_the_interval_of_a_proportion_is_about_the_binomial_one():
    value = np.arange(400) < 300
    result = estimate(value, np.ones(400, bool))
    assert result.mean == 0.75 and result.count == 400
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    np.testing.assert_allclose([result.low, result.high], [0.75 - half, 0.75 + half], atol=0.006)


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
