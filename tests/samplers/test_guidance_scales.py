"""Scales that change along the video and along the run."""

import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ConfigError
from jvdm.samplers import Call, ClassifierFree, Cosine, Ramped, TwoScales, Unguided, Weighted

T = jnp.array([[0.2, 0.5, 1.0], [0.9, 0.0, 0.4]])


def at(first, t=T):
    call = Call.at(t)
    return call._replace(row=call.row._replace(start=jnp.int32(first)))


def test_a_ramp_is_a_line_over_the_frames_of_the_video_in_any_window():
    rule = Ramped(1.0, 3.0, over=4)
    np.testing.assert_allclose(rule.weigh(at(0))[1], [[1.0, 1.5, 2.0]] * 2)
    np.testing.assert_allclose(rule.weigh(at(3))[1], [[2.5, 3.0, 3.0]] * 2)
    np.testing.assert_allclose(rule.weigh(at(3)).sum(axis=0), 1.0)
    np.testing.assert_array_equal(
        Ramped(2.0, 2.0, 4).weigh(at(1))[:, 0, 0], ClassifierFree(2.0).weigh(at(1))
    )
    assert rule.settled() is rule  # a scale of 1 at the first frame says nothing of the others
    with pytest.raises(ConfigError, match="over 0 frames"):
        Ramped(1.0, 3.0, over=0)


def test_a_cosine_rises_from_nothing_in_noise_to_the_scale_in_clean_data():
    levels = jnp.linspace(1.0, 0.0, 11)[None]
    scale = np.asarray(Cosine(5.0).weigh(at(0, levels))[1, 0])
    np.testing.assert_allclose(scale[[0, -1]], [1.0, 5.0], atol=1e-6)
    assert (np.diff(scale) >= 0).all() and scale[5] < 1.05  # (1/2)^5 of the way
    half = Cosine(5.0, power=1.0).weigh(at(0, levels))[1, 0, 5]
    np.testing.assert_allclose(half, 3.0, rtol=1e-5)


def test_a_clip_has_the_scale_of_its_noisiest_frame():
    rule = TwoScales(4.0, 3.0, 0.9)
    np.testing.assert_allclose(rule.weigh(at(0))[1], [[4.0] * 3, [4.0] * 3])
    np.testing.assert_allclose(rule.weigh(at(0, 0.89 * T))[1], [[3.0] * 3, [3.0] * 3])
    np.testing.assert_allclose(rule.weigh(at(0, T - jnp.array([[0.0], [0.1]])))[1, 1], 3.0)
    assert TwoScales(1.0, 3.0, 0.9).settled() == TwoScales(1.0, 3.0, 0.9)
    assert TwoScales(1.0, 1.0, 0.9).settled() == Unguided()


def test_weights_of_frames_are_those_of_the_window():
    weights = jnp.stack([1.0 - jnp.arange(10.0).reshape(2, 5), jnp.arange(10.0).reshape(2, 5)])
    rule = Weighted(("unconditional", "prompt"), weights)
    np.testing.assert_array_equal(rule.weigh(at(2)), weights[:, :, 2:5])
    whole = rule.weigh(Call.at(jnp.ones((2, 5))))
    np.testing.assert_array_equal(whole, weights)
