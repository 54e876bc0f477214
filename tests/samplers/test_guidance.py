import dataclasses

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxlib.version import __version_info__ as jaxlib_version

from jvdm.errors import ConfigError
from jvdm.samplers import (
    Call,
    ClassifierFree,
    Cosine,
    Denoised,
    Guidance,
    Interval,
    PlusPlus,
    Projected,
    Ramped,
    Rescaled,
    Unguided,
    Weighted,
    ZeroStar,
    guided,
    guided_carry,
    make_denoiser,
    rectified_flow,
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
    condition = jnp.concatenate(whats)

    def predict(x, call, carry):
        velocity = jnp.sin(3 * x + condition) * (1 + call.t[..., None])
        return velocity, None if carry is None else carry + x.mean(axis=(1, 2))

    return make_denoiser(predict, PROCESS)


def of(*whats):
    """All branches of these conditions, whatever their names."""
    return lambda names: branched(*whats)


NAMED = dict(zip(("unconditional", "prompt", "style"), WHATS, strict=True))


def named(names):
    return branched(*(NAMED[name] for name in names))


def follow(rule, denoiser_of=named, call=CALL, carry=None):
    return guided(rule, denoiser_of, PROCESS)(X, call, carry)


def alone(what):
    return branched(what)(X, CALL, None)[0]


def close(got, expected):
    chex.assert_trees_all_close(got, expected, atol=2e-6, rtol=2e-5)


def test_scales_zero_and_one_are_the_branches_themselves():
    for scale, what in ((0.0, WHATS[0]), (1.0, WHATS[1])):
        got, _ = jax.jit(guided(ClassifierFree(scale), named, PROCESS))(X, CALL, None)
        expected = jax.jit(lambda what=what: alone(what))()
        chex.assert_trees_all_close(got, expected, atol=5e-7)


@jax.jit
def guided_and_parts(first, second, scale):
    got, _ = follow(ClassifierFree(scale), of(first, second))
    return got, alone(first), alone(second)


@hypothesis.given(st.floats(-2, 9))
def test_guidance_is_a_line_through_the_branches(scale):
    got, without, condition = guided_and_parts(*WHATS[:2], scale)
    close(got, jax.tree.map(lambda u, c: u + scale * (c - u), without, condition))
    same, _, condition = guided_and_parts(WHATS[1], WHATS[1], scale)
    close(same, condition)


def added(two_sums):
    """What a step does with the sums over two branches, of data and of noise: it adds them."""
    x0, eps = (noise_like((2, 1, 64, 64), seed) for seed in (1, 2))
    weights = jnp.array([-3.0, 4.0])
    close(
        jax.jit(lambda *given: sum(two_sums(*given)))(weights, x0, eps),
        -3.0 * (x0[0] + eps[0]) + 4.0 * (x0[1] + eps[1]),
    )


def test_sums_over_branches_are_right_for_one_sample():
    def guidance(weights, x0, eps):
        branches = [Denoised(*branch) for branch in zip(x0, eps, strict=True)]
        return Weighted(("unconditional", "prompt"), weights).combine(branches, X, CALL, PROCESS)

    added(guidance)


@pytest.mark.xfail(
    jax.default_backend() == "cpu" and jaxlib_version < (0, 11),
    reason="XLA's fusion is wrong; where 0.11 is the oldest jaxlib, `_weighted_sum` can be one sum",
)
def test_xla_sums_over_an_axis_of_branches_rightly():
    def one_sum(weights, branches):
        return (weights[:, None, None, None] * branches).sum(axis=0)

    added(lambda weights, x0, eps: (one_sum(weights, x0), one_sum(weights, eps)))


def test_guidance_is_the_same_in_velocity_space():
    got, _ = follow(ClassifierFree(4.0))
    velocity = from_x0_eps(PROCESS, "velocity", got.x0, got.eps, T)
    without, condition = (
        from_x0_eps(PROCESS, "velocity", d.x0, d.eps, T) for d in map(alone, WHATS[:2])
    )
    np.testing.assert_allclose(velocity, without + 4 * (condition - without), atol=2e-5)


def test_three_branches_reduce_to_two_where_two_coincide():
    none, text = WHATS[:2]
    expected, _ = follow(ClassifierFree(2.0))
    for weights in (jnp.array([-1.0, -1.0, 3.0]), (-1.0, -1.0, 3.0)):
        nested = Weighted(("none", "one", "both"), weights)
        close(follow(nested, of(none, text, text))[0], expected)


def test_weights_may_differ_between_frames_and_depend_on_the_level():
    class OnlyInNoise(Guidance):
        def weigh(self, call):
            scale = jnp.where(call.t > 0.45, 3.0, 1.0)
            return jnp.stack([1 - scale, scale])

    by_level, _ = follow(OnlyInNoise())
    by_array, _ = follow(Weighted(("unconditional", "prompt"), OnlyInNoise().weigh(CALL)))
    chex.assert_trees_all_equal(by_level, by_array)
    for scale, chosen in ((3.0, T > 0.45), (1.0, T <= 0.45)):
        expected, _ = follow(ClassifierFree(scale))
        close(by_level.x0[chosen], expected.x0[chosen])


def zeros_of(names):
    return jnp.zeros(2 * len(names))


def test_the_carry_is_that_of_all_branches():
    rule = ClassifierFree(2.0)
    _, carry = follow(rule, carry=guided_carry(rule, zeros_of))
    np.testing.assert_allclose(carry, jnp.tile(X.mean(axis=(1, 2)), 2), rtol=1e-6)


def test_another_scale_is_not_another_program():
    @jax.jit
    @chex.assert_max_traces(1)
    def guide(rule):
        return follow(rule)[0].x0

    assert not jnp.allclose(guide(ClassifierFree(1.0)), guide(ClassifierFree(5.0)))


def test_weights_must_sum_to_one():
    with pytest.raises(ConfigError, match=r"sum to 1\.5"):
        Weighted(("unconditional", "prompt"), jnp.array([0.5, 1.0]))
    with pytest.raises(ConfigError, match=r"sum to 1\.5"):
        Weighted(("unconditional", "prompt"), (0.5, 1.0))
    per_frame = jnp.stack([jnp.full((2, 3), -1.0), jnp.full((2, 3), 2.0).at[1, 2].set(4.0)])
    with pytest.raises(ConfigError, match="of sample 1 of frame 2 sum to 3"):
        Weighted(("unconditional", "prompt"), per_frame)
    with pytest.raises(ConfigError, match=r"\(2,\) for 3 branches"):
        Weighted(("unconditional", "prompt", "style"), (0.0, 1.0))


def test_guidance_within_an_interval_of_levels_alone():
    got, _ = follow(Interval(3.0, 0.3, 0.6))
    for scale, chosen in ((3.0, (T >= 0.3) & (T <= 0.6)), (1.0, (T < 0.3) | (T > 0.6))):
        expected, _ = follow(ClassifierFree(scale))
        close(got.x0[chosen], expected.x0[chosen])
    ends = Interval(3.0, 0.2, 0.5).weigh(CALL)[1]  # both are levels of the call
    np.testing.assert_array_equal(ends == 3.0, (T >= 0.2) & (T <= 0.5))
    with pytest.raises(ConfigError, match="from level"):
        Interval(3.0, 0.6, 0.3)


def test_cfg_plus_plus_renoises_with_the_noise_of_no_condition():
    without, given = alone(WHATS[0]), alone(WHATS[1])
    for scale, x0 in ((0.0, without.x0), (1.0, given.x0), (0.5, (without.x0 + given.x0) / 2)):
        got, _ = follow(PlusPlus(scale))
        close(got.x0, x0)
        np.testing.assert_array_equal(got.eps, without.eps)
    with pytest.raises(ConfigError, match="CFG"):
        PlusPlus(7.5)


def test_rescaled_guidance_has_the_contrast_of_the_condition():
    given, (plain, _) = alone(WHATS[1]), follow(ClassifierFree(6.0))
    close(follow(Rescaled(6.0, 0.0))[0], plain)
    got, _ = follow(Rescaled(6.0, 1.0))
    np.testing.assert_allclose(got.x0.std((1, 2)), given.x0.std((1, 2)), rtol=1e-5)
    assert (plain.x0.std((1, 2)) > 1.2 * given.x0.std((1, 2))).all()
    direction = got.x0 / plain.x0
    np.testing.assert_allclose(direction, np.broadcast_to(direction[:, :1, :1], X.shape), rtol=1e-4)


def test_cfg_zero_star_ignores_a_multiple_of_the_condition():
    def velocity_of(got):
        return from_x0_eps(PROCESS, "velocity", got.x0, got.eps, T)

    def doubled(x, call, carry):
        given = jnp.sin(3 * x[:2])
        multiples = jnp.array([2.5, 0.4])[:, None, None]  # one for each sample
        return jnp.concatenate([multiples * given, given]), carry

    level = jnp.full_like(T, 0.5)
    both = make_denoiser(doubled, PROCESS)
    got, _ = follow(ZeroStar(7.0), lambda names: both, Call.at(level))
    velocity = from_x0_eps(PROCESS, "velocity", got.x0, got.eps, level)
    np.testing.assert_allclose(velocity, jnp.sin(3 * X), atol=2e-6)

    still, _ = follow(ZeroStar(3.0, zero_above=0.9))
    assert (velocity_of(still)[T >= 0.9] == 0).all()
    conditional, _ = follow(ZeroStar(1.0))
    expected = velocity_of(alone(WHATS[1]))
    moving = T > 0  # at t = 0 a frame is its own x0, whatever the network says
    np.testing.assert_allclose(velocity_of(conditional)[moving], expected[moving], atol=2e-5)


# Branches: how many are evaluated, together or one by one.

RULES = [
    Unguided(),
    ClassifierFree(3.0),
    Interval(3.0, 0.3, 0.6),
    PlusPlus(0.5),
    Rescaled(3.0),
    ZeroStar(3.0),
    Projected(3.0, norm=2.0),
    Ramped(1.0, 3.0, 2),
    Cosine(3.0),
    Weighted(("unconditional", "style", "prompt"), (-1.0, 0.5, 1.5)),
]
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)


def counting(names):
    """Like `named`; the carry counts the samples that the network was fed."""

    def denoise(x, call, carry):
        return named(names)(x, call, None)[0], carry + x.shape[0]

    return denoise


def evaluated(rule, call=CALL, carry=0):
    carry = guided_carry(rule, lambda names: jnp.array(carry))
    return np.asarray(follow(rule, counting, call, carry)[1]).tolist()


@each_rule
def test_rules_are_pytrees_whose_numbers_are_leaves(rule):
    assert isinstance(rule, Guidance)
    leaves, tree = jax.tree.flatten(rule)
    assert all(isinstance(leaf, float) for leaf in leaves)
    assert jax.tree.unflatten(tree, leaves) == rule and hash(rule) == hash(rule)
    assert jax.tree.structure(jax.tree.map(jnp.asarray, rule)) == tree
    jax.tree.map(lambda leaf: None, rule)
    jax.eval_shape(lambda rule: rule, rule)


@each_rule
def test_one_by_one_is_the_same_as_together(rule):
    if isinstance(rule, Unguided):
        return
    rule = dataclasses.replace(rule, execution="sequential")
    batched = dataclasses.replace(rule, execution="batched")
    got, carry = jax.jit(follow)(rule, carry=guided_carry(rule, zeros_of))
    expected, together = jax.jit(follow)(batched, carry=guided_carry(batched, zeros_of))
    close(got, expected)
    np.testing.assert_array_equal(jnp.concatenate(carry), together)
    assert jax.tree.structure(rule) != jax.tree.structure(batched)


@pytest.mark.parametrize("execution", ["batched", "sequential"])
def test_every_branch_is_told_the_levels_of_the_step(execution):
    def told(names):
        return lambda x, call, carry: (named(names)(x, call, None)[0], (call.t, call.t_next))

    rule, call = ClassifierFree(3.0, execution=execution), Call.at(T, T / 2)
    carry = guided_carry(rule, lambda names: (jnp.zeros((2 * len(names), 3)),) * 2)
    _, seen = follow(rule, told, call, carry)
    t, t_next = seen if execution == "batched" else map(jnp.concatenate, zip(*seen, strict=True))
    np.testing.assert_array_equal(t, jnp.concatenate([T, T]))
    np.testing.assert_array_equal(t_next, jnp.concatenate([T, T]) / 2)


def test_scale_one_needs_one_branch_alone():
    for rule in (ClassifierFree(1.0), ClassifierFree(1), Interval(1.0, 0.3, 0.6), Rescaled(1.0)):
        assert rule.settled() == Unguided() and evaluated(rule) == 4
        assert evaluated(rule.settled()) == 2
        close(follow(rule)[0], follow(rule.settled())[0])
    assert ZeroStar(1.0).settled() == Unguided()
    for rule in (
        ClassifierFree(2.0),
        ClassifierFree(jnp.float32(1.0)),
        PlusPlus(1.0),
        ZeroStar(1.0, 0.9),
        Weighted(("unconditional", "prompt"), jnp.array([0.0, 1.0])),
    ):
        assert rule.settled() is rule


def test_branches_of_weight_zero_are_left_out():
    names = ("unconditional", "style", "prompt")
    fewer = Weighted(names, (-1.0, 0.0, 2.0), execution="sequential").settled()
    assert fewer == Weighted(("unconditional", "prompt"), (-1.0, 2.0), execution="sequential")
    assert Weighted(names, (0.0, 1.0, 0.0)).settled() == Unguided("style")


def test_a_branch_that_no_frame_of_a_row_needs_is_skipped():
    inside, outside = Call.at(T), Call.at(jnp.full_like(T, 0.7))
    rule = Interval(3.0, 0.3, 0.6, execution="sequential")
    assert evaluated(rule, inside) == [2, 2] and evaluated(rule, outside) == [0, 2]
    close(follow(rule, call=outside, carry=(None, None))[0], alone_at(outside))
    assert evaluated(dataclasses.replace(rule, execution="batched"), outside) == 4
    assert evaluated(PlusPlus(1.0, execution="sequential")) == [2, 2]
    assert evaluated(PlusPlus(0.0, execution="sequential")) == [2, 0]
    weights = jnp.zeros((3, 2, 3)).at[2].set(1.0).at[1, 0, 0].set(-1.0).at[2, 0, 0].set(2.0)
    named_weights = Weighted(("unconditional", "style", "prompt"), weights, execution="sequential")
    assert evaluated(named_weights) == [0, 2, 2]


def test_a_row_that_is_written_to_a_cache_skips_no_branch():
    rule = Interval(3.0, 0.3, 0.6, execution="sequential")
    outside = Call.at(jnp.full_like(T, 0.7))
    written = outside.row._replace(write=jnp.array([False, True, False]))
    assert evaluated(rule, outside._replace(row=written)) == [2, 2]


def alone_at(call):
    return branched(WHATS[1])(X, call, None)[0]
