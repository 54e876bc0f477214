"""WanDiT: the numbers of the reference, and a level for every frame."""

import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.attention import FrameCausal
from jvdm.errors import ConfigError, ShapeError
from jvdm.models import ChannelCondition, Conditions, TextStates
from jvdm.models.conditions import PictureStates
from jvdm.models.wan import experts
from jvdm.pipeline.loading import ready
from jvdm.samplers import Call
from jvdm.weights.convert import converted
from tests.parity.references import Reference, drawn, inputs, off
from tests.vae.nano import QUICK

wan = importlib.import_module("jvdm.configs.families.wan")
REFERENCE = Reference("wan_transformer")
WAN = wan.transformer(REFERENCE.config).clone(dtype="float32")
X, TEXT = inputs((2, 4, 3, 8, 12), (2, 7, 32))
X = jnp.asarray(X.transpose(0, 2, 3, 4, 1))
TOLD = Conditions(TextStates(jnp.asarray(TEXT), jnp.array([7, 7])))
FRAMES = jnp.array([[0.0, 400.0, 900.0], [30.0, 60.0, 1000.0]])


@functools.cache
def parameters(seed=0):
    shapes = jax.eval_shape(WAN.init, jax.random.key(0), X, Call.at(FRAMES), TOLD)["params"]
    weights = drawn(REFERENCE.shapes, seed)
    return converted(wan.transformer_names(WAN), weights, shapes, "a folder")[0]


def predict(t, *carry, model=WAN):
    return model.apply({"params": parameters()}, X, Call.at(t), TOLD, *carry)[0]


@functools.cache
def runner(model=WAN):
    return jax.jit(functools.partial(predict, model=model), compiler_options=QUICK)


def test_the_reference_is_met_with_a_level_per_clip_and_per_frame():
    clip = jnp.broadcast_to(jnp.array([500.0, 200.0])[:, None], (2, 3))
    for t, name in ((clip, "clip"), (FRAMES, "frames")):
        made = runner()(t).transpose(0, 4, 1, 2, 3)
        assert off(made, REFERENCE.outputs[name]) < 5e-6  # 1.2e-6 and 1.6e-6 were measured


def test_a_prompt_is_heard_once_for_many_calls_but_on_a_mesh(monkeypatch):
    def products_of_a_layer(told):
        predict = functools.partial(WAN.apply, {"params": parameters()}, X, Call.at(FRAMES))
        equations = jax.make_jaxpr(predict)(told).eqns
        (layers,) = (each for each in equations if each.primitive.name == "scan")
        return str(layers.params["jaxpr"]).count("dot_general[")

    def called(params, told):
        heard = WAN.heard({"params": params}, told)
        return WAN.apply({"params": params}, X, Call.at(FRAMES), heard)[0], heard

    made, heard = jax.jit(called, compiler_options=QUICK)(parameters(), TOLD)
    assert off(made, runner()(FRAMES)) < 1e-6
    assert products_of_a_layer(heard) == products_of_a_layer(TOLD) - 2
    assert experts(WAN, 875.0).heard({"params": {}}, TOLD) is TOLD
    monkeypatch.setattr("jvdm.models.adaln_single.used", lambda: "a mesh")
    assert WAN.heard({"params": parameters()}, TOLD) is TOLD


def test_one_level_gives_the_bits_of_equal_levels_per_frame():
    one = jax.jit(lambda level: predict(jnp.full((2, 3), level)), compiler_options=QUICK)
    np.testing.assert_array_equal(one(400.0), runner()(jnp.full((2, 3), 400.0)))


def test_a_causal_frame_sees_no_later_level():
    causal = runner(WAN.clone(policy=FrameCausal()))
    before, after = causal(FRAMES), causal(FRAMES.at[:, 1].set(50.0))
    same = [np.array_equal(before[:, frame], after[:, frame]) for frame in range(3)]
    assert same == [True, False, False]


def test_only_differences_of_frame_positions_matter():
    run, frames = runner(), jnp.arange(3.0)
    near, far, spread = (
        run(FRAMES, WAN.start(*X.shape[1:4], places)) for places in (frames, frames + 9, 2 * frames)
    )
    np.testing.assert_array_equal(near, run(FRAMES))
    assert off(far, near) < 1e-4 and off(spread, near) > 1e-3


def test_sixteen_bits_are_as_near_as_those_of_the_reference():
    made = runner(WAN.clone(dtype="bfloat16"))(FRAMES).transpose(0, 4, 1, 2, 3)
    expected = REFERENCE.outputs["frames"]
    # PyTorch's own distance between the types is 0.7 to 1 % of a deviation (specs/models.md, D).
    assert np.sqrt(np.mean((made - expected) ** 2)) < 2e-2 * expected.std()


def test_kernels_of_the_embedding_of_levels_stay_wide():
    network = WAN.clone(dtype="bfloat16")
    kernels = {
        name: tree["kernel"].dtype
        for name, tree in ready(parameters(), network).items()
        if isinstance(tree, dict) and "kernel" in tree
    }
    wide = {name for name, dtype in kernels.items() if dtype == jnp.float32}
    assert wide == {"time_hidden", "time_out"} and len(kernels) == 7


def test_each_clip_is_seen_by_the_expert_of_its_noisiest_frame():
    both = {"high": parameters(), "low": parameters(1)}
    two = experts(WAN, 875.0)

    def told(params, t, x, model=WAN):
        return model.apply({"params": params}, x, Call.at(t), TOLD)[0]

    one = jax.jit(told, compiler_options=QUICK)
    run = jax.jit(functools.partial(told, model=two), compiler_options=QUICK)
    high, low = jnp.array([[0.0, 400.0, 875.0]] * 2), jnp.array([[0.0, 400.0, 874.0]] * 2)
    np.testing.assert_array_equal(run(both, high, X), one(both["high"], high, X))
    np.testing.assert_array_equal(run(both, low, X), one(both["low"], low, X))
    mixed = jnp.stack([high[0], low[0]])
    made = run(both, mixed, X)
    np.testing.assert_array_equal(made[0], one(both["high"], mixed, X)[0])
    np.testing.assert_array_equal(made[1], one(both["low"], mixed, X)[1])
    # The weights of the other one are not read: they may be anything.
    lost = {"high": both["high"], "low": jax.tree.map(lambda x: x * jnp.nan, both["low"])}
    assert np.isfinite(run(lost, high, X)).all()


def test_experts_are_made_and_collect_as_one_network():
    two = experts(WAN.clone(collect=(1,)), 875.0)
    shapes = jax.eval_shape(two.init, jax.random.key(0), X, Call.at(FRAMES), TOLD)["params"]
    assert shapes.keys() == {"high", "low"} and shapes["high"].keys() == parameters().keys()
    told = {"params": shapes}
    carry = jax.eval_shape(lambda told: two.apply(told, X, Call.at(FRAMES), TOLD)[1], told)
    assert carry.features.shape == (1, 2, 72, 48)


@functools.cache
def seeing(name):
    """Returns a network that reads pictures, its reference and weights, what it is told, and it."""
    reference = Reference(name)
    network = wan.transformer(reference.config).clone(dtype="float32")
    length = network.picture_places or 5
    x, text, pictures = inputs((2, 10, 3, 8, 12), (2, 512, 32), (2, length, 24))
    x = jnp.asarray(x.transpose(0, 2, 3, 4, 1))
    known = jnp.array([True, False, network.reads_pictures == 2])
    channel = ChannelCondition(x[..., 6:], jnp.broadcast_to(known[:, None, None], (2, 3, 8, 12)))
    states: Any = PictureStates(jnp.asarray(pictures), jnp.ones(2, bool))
    told: Any = Conditions(TextStates(jnp.asarray(text), jnp.array([512, 512])), channel, states)
    shapes = jax.eval_shape(network.init, jax.random.key(0), x[..., :4], Call.at(FRAMES), told)
    names = wan.transformer_names(network)
    params = converted(names, reference.weights, shapes["params"], "a folder")[0]

    def run(told):
        return network.apply({"params": params}, x[..., :4], Call.at(FRAMES), told)[0]

    return network, reference, params, told, run


@pytest.mark.parametrize("name", ["wan_seeing_transformer", "wan_between_transformer"])
def test_states_of_pictures_are_read_as_by_the_reference(name):
    network, reference, _, told, run = seeing(name)
    assert network.ports == ("text", "channel", "pictures")
    seen = told.pictures
    # One call of both clips as they are, and with pictures that do not count in the second.
    half = told.replace(pictures=seen.replace(known=jnp.array([True, False])))
    every, some = jax.jit(lambda *each: [run(one) for one in each], compiler_options=QUICK)(
        told, half
    )
    expected = reference.outputs["frames"].transpose(0, 2, 3, 4, 1)
    assert off(every, expected) < 5e-6  # 1.3e-6 and 1.4e-6 were measured
    np.testing.assert_array_equal(some[0], every[0])
    assert off(some[1], every[1]) > 1e-2


def test_a_port_without_pictures_has_no_effect():
    *_, told, run = seeing("wan_seeing_transformer")
    unseen = told.replace(pictures=told.pictures.replace(known=jnp.zeros(2, bool)))
    without, left = jax.jit(lambda *each: [run(one) for one in each], compiler_options=QUICK)(
        told.without("pictures"), unseen
    )
    assert off(left, without) < 1e-6


def test_half_of_the_pictures_is_too_few():
    *_, told, run = seeing("wan_between_transformer")
    half = told.replace(pictures=told.pictures.replace(states=told.pictures.states[:, :5]))
    with pytest.raises(ShapeError, match="5 states of pictures.*reads 10, of a first and a last"):
        jax.eval_shape(run, half)


@pytest.mark.parametrize(("places", "count"), [(None, 16_394_878_784), (514, 16_395_536_704)])
def test_a_network_of_pictures_has_the_published_number_of_parameters(places, count):
    sizes = {"num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824}
    sizes |= {"num_layers": 40, "in_channels": 36, "out_channels": 16, "freq_dim": 256}
    sizes |= {"image_dim": 1280, "pos_embed_seq_len": places}
    network = wan.transformer(REFERENCE.config | sizes)
    told = Conditions(TextStates(jnp.zeros((1, 1, 4096)), jnp.array([1])))
    inputs = (jnp.zeros((1, 1, 2, 2, 16)), Call.at(jnp.zeros((1, 1))), told)
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_a_prompt_is_needed():
    with pytest.raises(ConfigError, match="no prompt"):
        jax.eval_shape(WAN.init, jax.random.key(0), X, Call.at(FRAMES), Conditions())
