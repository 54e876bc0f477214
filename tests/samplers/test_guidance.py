import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from jvdm.samplers import classifier_free, linear, make_denoiser, rectified_flow, stack_branches
from jvdm.samplers.process import from_x0_eps
from tests.samplers.problems import noise_like

PROCESS = rectified_flow()
X = noise_like((2, 3, 4))
T = jnp.array([[0.2, 0.5, 1.0], [0.9, 0.0, 0.4]])
WHATS = [noise_like((2, 1, 1), seed) for seed in (1, 2, 3)]


def branched(*whats):
    """A network whose condition says what is added; one branch per argument."""
    condition = stack_branches(*whats)

    def predict(x, t, carry):
        velocity = jnp.sin(3 * x + condition) * (1 + t[..., None])
        return velocity, None if carry is None else carry + x.mean(axis=(1, 2))

    return make_denoiser(predict, PROCESS)


def alone(what):
    return branched(what)(X, T, None)[0]


def close(got, expected):
    chex.assert_trees_all_close(got, expected, atol=2e-6, rtol=2e-5)


def test_scales_zero_and_one_are_the_branches_themselves():
    both = branched(*WHATS[:2])
    for scale, what in ((0.0, WHATS[0]), (1.0, WHATS[1])):
        guided, _ = jax.jit(classifier_free(both, scale))(X, T, None)
        expected = jax.jit(lambda what=what: alone(what))()
        chex.assert_trees_all_close(guided, expected, atol=5e-7)


@jax.jit
def guided_and_parts(first, second, scale):
    guided, _ = classifier_free(branched(first, second), scale)(X, T, None)
    return guided, alone(first), alone(second)


@hypothesis.given(st.floats(-2, 9))
def test_guidance_is_a_line_through_the_branches(scale):
    guided, without, condition = guided_and_parts(*WHATS[:2], scale)
    close(guided, jax.tree.map(lambda u, c: u + scale * (c - u), without, condition))
    same, _, condition = guided_and_parts(WHATS[1], WHATS[1], scale)
    close(same, condition)


def test_guidance_is_the_same_in_velocity_space():
    guided, _ = classifier_free(branched(*WHATS[:2]), 4.0)(X, T, None)
    velocity = from_x0_eps(PROCESS, "velocity", guided.x0, guided.eps, T)
    without, condition = (
        from_x0_eps(PROCESS, "velocity", d.x0, d.eps, T) for d in map(alone, WHATS[:2])
    )
    np.testing.assert_allclose(velocity, without + 4 * (condition - without), atol=2e-5)


def test_three_branches_reduce_to_two_where_two_coincide():
    none, text = WHATS[:2]
    nested = linear(branched(none, text, text), jnp.array([-1.0, -1.0, 3.0]))
    close(nested(X, T, None)[0], classifier_free(branched(none, text), 2.0)(X, T, None)[0])


def test_weights_may_differ_between_frames_and_depend_on_the_level():
    def only_in_noise(t):
        scale = jnp.where(t > 0.45, 3.0, 1.0)
        return jnp.stack([1 - scale, scale])

    both = branched(*WHATS[:2])
    by_level, _ = linear(both, only_in_noise)(X, T, None)
    by_array, _ = linear(both, only_in_noise(T))(X, T, None)
    chex.assert_trees_all_equal(by_level, by_array)
    for scale, chosen in ((3.0, T > 0.45), (1.0, T <= 0.45)):
        expected, _ = classifier_free(both, scale)(X, T, None)
        close(by_level.x0[chosen], expected.x0[chosen])


def test_the_carry_is_that_of_all_branches():
    carry = jnp.zeros(4)
    _, carry = classifier_free(branched(*WHATS[:2]), 2.0)(X, T, carry)
    np.testing.assert_allclose(carry, jnp.tile(X.mean(axis=(1, 2)), 2), rtol=1e-6)


def test_another_scale_is_not_another_program():
    @jax.jit
    @chex.assert_max_traces(1)
    def guided(scale):
        return classifier_free(branched(*WHATS[:2]), scale)(X, T, None)[0].x0

    assert not jnp.allclose(guided(1.0), guided(5.0))
