"""Routers of width, tokens and frames: what everything open, a bucket and a capacity compute."""

import dataclasses
import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.attention import FrameCausal
from jvdm.errors import ConfigError
from jvdm.models.dynamic_width import DynamicWidth, gate, needed
from jvdm.models.regions import Regions
from jvdm.models.stack import GATES
from jvdm.models.step_cache import StepCache
from jvdm.parallel import mesh_of, using
from jvdm.samplers import Call
from jvdm.values import from_data, to_data
from tests.models.small import DIT, SHAPE, conditions, latents, parameters, runner

RULE = DynamicWidth(groups=4)
SEED = 7
GATED = DIT.clone(dynamic=RULE)
T = jnp.array([[0.2, 0.5, 0.9], [0.3, 0.3, 0.3]])


def with_rule(**fields):
    """`GATED` under another rule."""
    return GATED.clone(dynamic=dataclasses.replace(RULE, **fields))


@functools.cache
def routed():
    """Parameters whose routers open about half of everything."""

    def said(path, leaf):
        name = jax.tree_util.keystr(path)
        if not any(part in name for part in ("to_parts", "to_token", "to_frame")):
            return leaf
        width = "to_parts" in name
        drawn = jax.random.normal(jax.random.key(zlib.crc32(name.encode()) + SEED), leaf.shape)
        offset = (RULE.bias if width else RULE.token_bias) if "bias" in name else 0.0
        return drawn * (3.0 if "bias" in name else 20.0 if width else 4.0) - offset

    return jax.tree_util.tree_map_with_path(said, parameters(GATED))


def run(model, params=None, t=T, x=None):
    """What a model predicts."""
    params = routed() if params is None else params
    return np.asarray(runner(model)(params, latents() if x is None else x, t, conditions()))


@functools.cache
def spent():
    """Shares of attention and MLP that count in each layer and clip, `[depth, 2, B]`."""
    told = (latents(), Call.at(T), conditions())
    _, said = jax.jit(lambda p: GATED.apply({"params": p}, *told, mutable=[GATES]))(routed())
    return np.asarray(said[GATES]["layers"]["spent"][0])


def test_fresh_routers_and_a_complete_network_are_the_plain_one_bit_for_bit():
    plain = run(DIT, parameters(GATED))
    np.testing.assert_array_equal(run(GATED, parameters(GATED)), plain)
    np.testing.assert_array_equal(run(with_rule(complete=True)), plain)
    assert np.abs(run(GATED) - plain).max() > 1e-3
    assert 0.1 < spent().mean() < 0.9


@pytest.mark.parametrize(("level", "width"), [(0.3, (2, 2)), (0.5, (1, 4))])
def test_a_bucket_that_holds_what_is_needed_computes_what_masks_do(level, width):
    t = jnp.full((2, 3), level)
    assert needed(GATED, routed(), t).tolist() == [list(width)] * 2
    np.testing.assert_allclose(run(with_rule(width=width), t=t), run(GATED, t=t), atol=1e-5)
    less = run(with_rule(width=(1, 2)), t=t)
    assert np.abs(less - run(GATED, t=t)).max() > 1e-3, "parts that count were left out"


def test_a_call_needs_what_any_of_its_frames_does():
    """Gates of a frame are those of its level, whatever the levels of others are."""
    apart = [needed(GATED, routed(), T[:1, frame : frame + 1]) for frame in range(3)]
    both = needed(GATED, routed(), T[:1])
    assert (both >= np.max(apart, 0)).all()
    assert all((both > one).any() for one in apart)


def test_beside_another_policy_heads_are_masked_and_channels_left_out():
    """Its lists are those of all heads."""
    t, narrow = jnp.full((2, 3), 0.3), with_rule(width=(1, 2))
    masked, narrow = (model.clone(policy=FrameCausal()) for model in (GATED, narrow))
    np.testing.assert_allclose(run(narrow, t=t), run(masked, t=t), atol=1e-5)


def test_tokens_at_a_capacity_that_holds_them_are_the_masked_ones():
    masked = run(GATED)
    np.testing.assert_allclose(run(with_rule(capacity=1.0)), masked, atol=1e-5)
    assert spent()[:, 1].max() < 0.7
    np.testing.assert_allclose(run(with_rule(capacity=0.75)), masked, atol=1e-5)
    assert np.abs(run(with_rule(capacity=0.1)) - masked).max() > 1e-4


def operations(model):
    """Operations of the compiled program, layers unrolled: XLA counts the body of a loop once."""
    model = model.clone(unroll=model.depth)
    lowered = runner(model).lower(routed(), latents(), T, conditions())
    costs: Any = lowered.compile().cost_analysis()
    return costs["flops"]


def test_programs_of_less_width_and_capacity_have_fewer_operations():
    whole = operations(DIT)
    tokens, width = np.prod(SHAPE[:2]) * 4, DIT.width
    mlp = 3 * tokens * 2 * 2 * 4 * width**2
    half = operations(with_rule(width=(2, 2), tokens=False, frames=False))
    assert 0.9 * mlp / 2 < whole - half < 1.1 * mlp / 2
    heads = operations(with_rule(width=(1, 4), tokens=False, frames=False))
    attention = 3 * tokens * (8 * width**2 + 4 * width * tokens / 2)
    assert 0.9 * attention / 2 < whole - heads < 1.2 * attention / 2
    few = operations(with_rule(capacity=0.25, frames=False))
    assert 0.6 * mlp < whole - few < 0.8 * mlp


def test_a_gate_is_one_or_zero_and_has_the_slope_of_a_sigmoid():
    logits, noise = jnp.linspace(-8.0, 8.0, 33), jnp.linspace(3.0, -3.0, 33)
    values = gate(logits, noise, 5.0)
    np.testing.assert_array_equal(values, (logits + noise > 0).astype(jnp.float32))
    slope = jax.grad(lambda x: gate(x, noise, 5.0).sum())(logits)
    soft = jax.nn.sigmoid((logits + noise) / 5.0)
    np.testing.assert_allclose(slope, soft * (1 - soft) / 5.0, rtol=1e-5)
    np.testing.assert_array_equal(gate(logits, None, 5.0), (logits > 0).astype(jnp.float32))


def test_every_router_learns_from_the_output_in_training_alone():
    def loss(params, key):
        given = {} if key is None else {"rngs": {GATES: key}}
        told = (latents(), Call.at(T), conditions())
        return jnp.square(GATED.apply({"params": params}, *told, **given)[0]).mean()

    slope = jax.jit(jax.grad(loss))
    for key, learns in ((jax.random.key(0), True), (None, False)):
        layers = slope(routed(), key)["layers"]
        for name in ("width_router", "token_router"):
            sizes = jax.tree.map(lambda leaf: float(jnp.abs(leaf).max()), layers[name])
            assert all((size > 0) == learns for size in jax.tree.leaves(sizes)), sizes


def test_frames_of_one_level_share_their_widths_in_training():
    """As they do when videos are made; other clips draw for themselves."""
    rule = dataclasses.replace(RULE, tokens=False, frames=False, bias=0.0)
    layers = dict(routed()["layers"])
    layers["width_router"] = jax.tree.map(jnp.zeros_like, layers["width_router"])
    told = (jnp.zeros(SHAPE), Call.at(jnp.full((2, 3), 0.5)), conditions())
    model = GATED.clone(dynamic=rule)
    keys = {"rngs": {GATES: jax.random.key(0)}, "mutable": [GATES]}
    params = {**routed(), "layers": layers}
    _, said = jax.jit(lambda p: model.apply({"params": p}, *told, **keys))(params)
    share = said[GATES]["layers"]["spent"][0] * jnp.array([2, 4])[None, :, None]
    np.testing.assert_allclose(share, jnp.round(share), atol=1e-5)
    assert len(np.unique(np.round(share))) > 2, "noise decides nothing"


def test_a_step_cache_computes_what_it_would_have():
    cached = GATED.clone(cache=StepCache(longest=1, above=0.95))
    carry = cached.start(*SHAPE[1:4], batch=2)
    call = Call.at(jnp.full((2, 3), 0.99))
    out, _ = jax.jit(cached.apply)({"params": routed()}, latents(), call, conditions(), carry)
    np.testing.assert_allclose(out, run(GATED, t=call.t), atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"groups": -1}, "-1 groups"),
        ({"buckets": 0}, "0 buckets"),
        ({"temperature": 0.0}, "temperature of 0"),
        ({"noise": -1.0}, "noise of -1"),
        ({"rate": 0.0}, "rate of 0"),
        ({"capacity": 1.5}, "capacity of 1.5"),
    ],
)
def test_a_rule_out_of_range_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(RULE, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"groups": 5}, "5 groups of 128 channels"),
        ({"width": (3, 4)}, "program of 3 heads and 4 groups"),
        ({"groups": 1}, "one of them always counts"),
    ],
)
def test_a_rule_of_another_network_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(
            with_rule(**fields).apply, {"params": routed()}, latents(), Call.at(T), conditions()
        )


def test_what_runs_some_tokens_or_splits_them_is_refused():
    told = (latents(), Call.at(T), conditions())
    model = GATED.clone(cache=Regions())
    with pytest.raises(ConfigError, match="step cache that runs some tokens"):
        jax.eval_shape(model.apply, {"params": routed()}, *told)
    with using(mesh_of("sequence=4")), pytest.raises(ConfigError, match="splits tokens"):
        jax.eval_shape(GATED.apply, {"params": routed()}, *told)


def test_buckets_are_parts_of_the_width_and_hold_what_is_needed():
    rule = dataclasses.replace(RULE, buckets=4)
    assert [rule.bucket(need, 16) for need in (1, 4, 5, 12, 13, 16)] == [4, 4, 8, 12, 16, 16]
    assert [rule.bucket(need, 3) for need in (1, 2, 3)] == [1, 2, 3]
    assert [rule.bucket(need, 6) for need in range(1, 7)] == [2, 3, 3, 5, 6, 6]


def test_a_manifest_says_the_rule():
    assert from_data(to_data(GATED)) == GATED
