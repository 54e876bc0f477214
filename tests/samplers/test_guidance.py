import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ConfigError
from jvdm.samplers import (
    Call,
    cfg_plus_plus,
    cfg_zero_star,
    classifier_free,
    in_interval,
    linear,
    make_denoiser,
    rectified_flow,
    rescaled,
    stack_branches,
)
from jvdm.samplers.process import from_x0_eps
from tests.samplers.problems import noise_like

PROCESS = rectified_flow()
X = noise_like((2, 3, 4))
T = jnp.array([[0.2, 0.5, 1.0], [0.9, 0.0, 0.4]])
CALL = Call.at(T)
WHATS = [noise_like((2, 1, 1), seed) for seed in (1, 2, 3)]


def branched(*whats):
    """A network whose condition says what is added; one branch per argument."""
    condition = stack_branches(*whats)

    def predict(x, call, carry):
        velocity = jnp.sin(3 * x + condition) * (1 + call.t[..., None])
        return velocity, None if carry is None else carry + x.mean(axis=(1, 2))

    return make_denoiser(predict, PROCESS)


def alone(what):
    return branched(what)(X, CALL, None)[0]


def close(got, expected):
    chex.assert_trees_all_close(got, expected, atol=2e-6, rtol=2e-5)


def test_scales_zero_and_one_are_the_branches_themselves():
    both = branched(*WHATS[:2])
    for scale, what in ((0.0, WHATS[0]), (1.0, WHATS[1])):
        guided, _ = jax.jit(classifier_free(both, scale))(X, CALL, None)
        expected = jax.jit(lambda what=what: alone(what))()
        chex.assert_trees_all_close(guided, expected, atol=5e-7)


@jax.jit
def guided_and_parts(first, second, scale):
    guided, _ = classifier_free(branched(first, second), scale)(X, CALL, None)
    return guided, alone(first), alone(second)


@hypothesis.given(st.floats(-2, 9))
def test_guidance_is_a_line_through_the_branches(scale):
    guided, without, condition = guided_and_parts(*WHATS[:2], scale)
    close(guided, jax.tree.map(lambda u, c: u + scale * (c - u), without, condition))
    same, _, condition = guided_and_parts(WHATS[1], WHATS[1], scale)
    close(same, condition)


def test_guidance_is_the_same_in_velocity_space():
    guided, _ = classifier_free(branched(*WHATS[:2]), 4.0)(X, CALL, None)
    velocity = from_x0_eps(PROCESS, "velocity", guided.x0, guided.eps, T)
    without, condition = (
        from_x0_eps(PROCESS, "velocity", d.x0, d.eps, T) for d in map(alone, WHATS[:2])
    )
    np.testing.assert_allclose(velocity, without + 4 * (condition - without), atol=2e-5)


def test_three_branches_reduce_to_two_where_two_coincide():
    none, text = WHATS[:2]
    nested = linear(branched(none, text, text), jnp.array([-1.0, -1.0, 3.0]))
    close(nested(X, CALL, None)[0], classifier_free(branched(none, text), 2.0)(X, CALL, None)[0])


def test_weights_may_differ_between_frames_and_depend_on_the_level():
    def only_in_noise(t):
        scale = jnp.where(t > 0.45, 3.0, 1.0)
        return jnp.stack([1 - scale, scale])

    both = branched(*WHATS[:2])
    by_level, _ = linear(both, only_in_noise)(X, CALL, None)
    by_array, _ = linear(both, only_in_noise(T))(X, CALL, None)
    chex.assert_trees_all_equal(by_level, by_array)
    for scale, chosen in ((3.0, T > 0.45), (1.0, T <= 0.45)):
        expected, _ = classifier_free(both, scale)(X, CALL, None)
        close(by_level.x0[chosen], expected.x0[chosen])


def test_the_carry_is_that_of_all_branches():
    carry = jnp.zeros(4)
    _, carry = classifier_free(branched(*WHATS[:2]), 2.0)(X, CALL, carry)
    np.testing.assert_allclose(carry, jnp.tile(X.mean(axis=(1, 2)), 2), rtol=1e-6)


def test_another_scale_is_not_another_program():
    @jax.jit
    @chex.assert_max_traces(1)
    def guided(scale):
        return classifier_free(branched(*WHATS[:2]), scale)(X, CALL, None)[0].x0

    assert not jnp.allclose(guided(1.0), guided(5.0))


def test_weights_must_sum_to_one():
    with pytest.raises(ConfigError, match=r"sum to 1\.5"):
        linear(branched(*WHATS[:2]), jnp.array([0.5, 1.0]))
    per_frame = jnp.stack([jnp.full((2, 3), -1.0), jnp.full((2, 3), 2.0).at[1, 2].set(4.0)])
    with pytest.raises(ConfigError, match="sum to 3"):
        linear(branched(*WHATS[:2]), per_frame)


def test_guidance_within_an_interval_of_levels_alone():
    both = branched(*WHATS[:2])
    guided, _ = linear(both, in_interval(3.0, 0.3, 0.6))(X, CALL, None)
    for scale, chosen in ((3.0, (T >= 0.3) & (T <= 0.6)), (1.0, (T < 0.3) | (T > 0.6))):
        expected, _ = classifier_free(both, scale)(X, CALL, None)
        close(guided.x0[chosen], expected.x0[chosen])
    with pytest.raises(ConfigError, match="from level"):
        in_interval(3.0, 0.6, 0.3)


def test_cfg_plus_plus_renoises_with_the_noise_of_no_condition():
    without, given = alone(WHATS[0]), alone(WHATS[1])
    for scale, x0 in ((0.0, without.x0), (1.0, given.x0), (0.5, (without.x0 + given.x0) / 2)):
        guided, _ = cfg_plus_plus(branched(*WHATS[:2]), scale)(X, CALL, None)
        close(guided.x0, x0)
        np.testing.assert_array_equal(guided.eps, without.eps)
    with pytest.raises(ConfigError, match="CFG"):
        cfg_plus_plus(branched(*WHATS[:2]), 7.5)


def test_rescaled_guidance_has_the_contrast_of_the_condition():
    both, given = branched(*WHATS[:2]), alone(WHATS[1])
    plain, _ = classifier_free(both, 6.0)(X, CALL, None)
    close(rescaled(both, 6.0, 0.0)(X, CALL, None)[0], plain)
    guided, _ = rescaled(both, 6.0, 1.0)(X, CALL, None)
    np.testing.assert_allclose(guided.x0.std((1, 2)), given.x0.std((1, 2)), rtol=1e-5)
    assert (plain.x0.std((1, 2)) > 1.2 * given.x0.std((1, 2))).all()
    direction = guided.x0 / plain.x0
    np.testing.assert_allclose(direction, np.broadcast_to(direction[:, :1, :1], X.shape), rtol=1e-4)


def test_cfg_zero_star_ignores_a_multiple_of_the_condition():
    def velocity_of(guided):
        return from_x0_eps(PROCESS, "velocity", guided.x0, guided.eps, T)

    def doubled(x, call, carry):
        given = jnp.sin(3 * x[:2])
        return jnp.concatenate([2.5 * given, given]), carry

    level = jnp.full_like(T, 0.5)
    both = make_denoiser(doubled, PROCESS)
    guided, _ = cfg_zero_star(both, PROCESS, 7.0)(X, Call.at(level), None)
    velocity = from_x0_eps(PROCESS, "velocity", guided.x0, guided.eps, level)
    np.testing.assert_allclose(velocity, jnp.sin(3 * X), atol=2e-6)

    both = branched(*WHATS[:2])
    still, _ = cfg_zero_star(both, PROCESS, 3.0, zero_above=0.9)(X, CALL, None)
    assert (velocity_of(still)[T >= 0.9] == 0).all()
    conditional, _ = cfg_zero_star(both, PROCESS, 1.0)(X, CALL, None)
    expected = velocity_of(alone(WHATS[1]))
    moving = T > 0  # at t = 0 a frame is its own x0, whatever the network says
    np.testing.assert_allclose(velocity_of(conditional)[moving], expected[moving], atol=2e-5)
