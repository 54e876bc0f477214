"""Scales that change along the video and along the run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ConfigError
from jvdm.samplers import (
    Call,
    ClassifierFree,
    Cosine,
    History,
    Interval,
    PlusPlus,
    Projected,
    Ramped,
    TwoScales,
    Unguided,
    Weighted,
    ZeroStar,
    check_weights,
    freeze,
    lag_matrix,
    linspace_levels,
)

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
    assert TwoScales(1.0).settled() == Unguided()
    np.testing.assert_array_equal(TwoScales(4.0).weigh(at(0)), ClassifierFree(4.0).weigh(at(0)))


def test_weights_of_frames_are_those_of_the_window():
    weights = jnp.stack([1.0 - jnp.arange(10.0).reshape(2, 5), jnp.arange(10.0).reshape(2, 5)])
    rule = Weighted(("unconditional", "prompt"), weights)
    np.testing.assert_array_equal(rule.weigh(at(2)), weights[:, :, 2:5])
    whole = rule.weigh(Call.at(jnp.ones((2, 5))))
    np.testing.assert_array_equal(whole, weights)


WAVE = freeze(lag_matrix(linspace_levels(4), 3, lag=1), [0])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Forgotten(ClassifierFree):
    """A rule of a user who forgot that weights sum to 1 below the level .5, or from a row on."""

    from_row: int = 99

    def weigh(self, call):
        off = (call.t < 0.5) | (call.row.index >= self.from_row)
        scale = jnp.where(off, self.scale, 1.0)
        return jnp.stack([jnp.zeros_like(scale), scale])


def test_weights_of_a_rule_that_do_not_sum_to_one_are_refused_with_row_and_frame():
    """Frame 1 starts in row 1 at level 1, and is below .5 in row 4; frame 0 never moves."""
    with pytest.raises(ConfigError, match="row 4, frame 1: .* of Forgotten sum to 3"):
        check_weights(Forgotten(3.0), WAVE)
    with pytest.raises(ConfigError, match="row 2, frame 1: .* of Forgotten sum to 3"):
        check_weights(Forgotten(3.0, 2), WAVE)
    check_weights(Forgotten(1.0), WAVE)
    arrays = Weighted(("unconditional", "prompt"), jnp.array([[[-1.0] * 3], [[2.0] * 3]]))
    rules = [
        ClassifierFree(3.0),
        Interval(3.0, 0.2, 0.6),
        PlusPlus(0.5),
        ZeroStar(3.0),
        Cosine(3.0),
    ]
    rules += [Projected(3.0), Ramped(1.0, 3.0, 2), TwoScales(3.0, 2.0, 0.5), History(3.0), arrays]
    for rule in [*rules, Unguided()]:
        check_weights(rule, WAVE)
