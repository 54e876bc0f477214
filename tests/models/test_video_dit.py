"""VideoDiT: per-frame levels, information flow, ports, layers as a scan."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.attention import FrameCausal
from jvdm.errors import ConfigError, ShapeError
from jvdm.models import ChannelCondition, Conditions
from jvdm.models.dynamic_width import DynamicWidth
from jvdm.models.layers import waves_of_places
from jvdm.samplers import Call
from tests.generate.nano import drawn
from tests.models.small import DIT, SHAPE, conditions, latents, parameters, runner

T = jnp.array([[0.1, 0.5, 0.9], [0.3, 0.3, 1.0]])


def test_parameters_drawn_one_by_one_are_those_that_init_draws():
    given = (jax.random.key(1), latents(), Call.at(T), conditions())
    made, expected = drawn(DIT.init, *given), jax.jit(DIT.init)(*given)
    chex.assert_trees_all_close(made, expected, rtol=1e-6)


def test_one_level_for_all_frames_gives_the_bits_of_equal_levels_per_frame():
    equal = jnp.full(SHAPE[:2], 0.4)
    spread = jnp.broadcast_to(jnp.float32(0.4)[None, None], SHAPE[:2])
    run = runner()
    np.testing.assert_array_equal(
        run(parameters(), latents(), equal, conditions()),
        run(parameters(), latents(), spread, conditions()),
    )


def test_a_level_changes_all_frames_with_dense_attention_and_only_later_ones_with_causal():
    moved = T.at[:, 1].set(0.05)
    for model, untouched in ((DIT, ()), (DIT.clone(policy=FrameCausal()), (0,))):
        run = runner(model)
        before = run(parameters(), latents(), T, conditions())
        after = run(parameters(), latents(), moved, conditions())
        for frame in range(SHAPE[1]):
            same = np.array_equal(before[:, frame], after[:, frame])
            assert same == (frame in untouched), (model.policy, frame)


def test_a_causal_frame_has_no_gradient_towards_the_future():
    model = DIT.clone(policy=FrameCausal())

    def second_frame(x):
        return model.apply({"params": parameters()}, x, Call.at(T), conditions())[0][:, 1].sum()

    gradient = jax.jit(jax.grad(second_frame))(latents())
    assert np.abs(gradient[:, :2]).max(axis=(0, 2, 3, 4)).min() > 0
    assert np.abs(gradient[:, 2]).max() == 0


def test_a_causal_block_of_all_frames_is_dense():
    causal = runner(DIT.clone(policy=FrameCausal(block=SHAPE[1])))
    one = causal(parameters(), latents(), T, conditions())
    two = runner()(parameters(), latents(), T, conditions())
    np.testing.assert_allclose(one, two, atol=1e-6)


def test_padding_of_the_prompt_is_never_read_and_words_are():
    said = conditions()
    noise = jax.random.normal(jax.random.key(3), said.text.states.shape)
    read = jnp.arange(6)[None] < said.text.lengths[:, None]
    other = jnp.where(read[..., None], said.text.states, noise)
    changed = jnp.where(read[..., None], noise, said.text.states)
    run = runner()
    base = run(parameters(), latents(), T, said)
    padded = Conditions(dataclasses.replace(said.text, states=other))
    reworded = Conditions(dataclasses.replace(said.text, states=changed))
    np.testing.assert_array_equal(base, run(parameters(), latents(), T, padded))
    assert np.abs(base - run(parameters(), latents(), T, reworded)).max() > 1e-3


def carry_at(positions, model=DIT):
    return model.start(*SHAPE[1:4], positions)


def test_only_differences_of_frame_positions_matter():
    frames = jnp.arange(3.0)
    run = runner()
    near = run(parameters(), latents(), T, conditions(), carry_at(frames))
    far = run(parameters(), latents(), T, conditions(), carry_at(frames + 11.0))
    spread = run(parameters(), latents(), T, conditions(), carry_at(2.0 * frames))
    np.testing.assert_array_equal(near, run(parameters(), latents(), T, conditions()))
    # Cosines of angles up to 13 in float32: a few units in the last place of the angle.
    np.testing.assert_allclose(near, far, atol=2e-5)
    assert np.abs(near - spread).max() > 1e-3


def test_a_fresh_channel_port_has_no_effect_and_a_trained_one_reads_known_cells_alone():
    model = DIT.clone(ports=("text", "channel"))
    known = jnp.zeros(SHAPE[:-1], bool).at[:, 0].set(True)
    channel = ChannelCondition(latents(5), known)
    told = Conditions(conditions().text, channel)
    inputs = (latents(), T, told)
    params = drawn(model.init, jax.random.key(1), latents(), Call.at(T), told)["params"]
    plain = {name: tree for name, tree in params.items() if name != "channel_in"}
    run = runner(model)
    np.testing.assert_array_equal(run(params, *inputs), runner()(plain, latents(), T, conditions()))

    params["channel_in"] = jax.tree.map(lambda leaf: leaf + 0.1, params["channel_in"])
    base = run(params, *inputs)
    hidden = ChannelCondition(latents(5).at[:, 1:].set(9.0), known)
    seen = ChannelCondition(latents(6), known)
    same, other = (run(params, *inputs[:2], Conditions(told.text, c)) for c in (hidden, seen))
    np.testing.assert_array_equal(base, same)
    assert np.abs(base - other).max() > 1e-3


def test_a_model_has_the_parameters_of_its_ports_alone():
    both = DIT.clone(ports=("text", "channel"))
    made = jax.eval_shape(both.init, jax.random.key(0), latents(), Call.at(T), conditions())
    assert set(made["params"]) == {*parameters(), "channel_in"}
    mute = DIT.clone(ports=())
    inputs = (latents(), Call.at(T), Conditions())
    params = drawn(mute.init, jax.random.key(1), *inputs)["params"]
    assert "text_in" not in params and not {"cross_attention", "cross_norm"} & set(params["layers"])
    with pytest.raises(ConfigError, match="text port, without text"):
        jax.eval_shape(DIT.init, jax.random.key(0), *inputs)


def test_a_text_port_that_writes_nothing_is_no_text_port():
    silent = {**parameters(), "layers": {**parameters()["layers"]}}
    reader = silent["layers"]["cross_attention"]
    silent["layers"]["cross_attention"] = reader | {
        "out": jax.tree.map(jnp.zeros_like, reader["out"])
    }
    told = runner()(silent, latents(), T, conditions())
    np.testing.assert_array_equal(told, runner()(silent, latents(), T, Conditions()))
    assert np.abs(told - runner()(parameters(), latents(), T, conditions())).max() > 1e-3


@pytest.mark.parametrize("changes", [{"unroll": 3}, {"remat": "none"}, {"remat": "all"}])
def test_how_layers_are_compiled_changes_neither_output_nor_gradient(changes):
    def loss(params, model):
        return jnp.square(
            model.apply({"params": params}, latents(), Call.at(T), conditions())[0]
        ).mean()

    value = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    chex.assert_trees_all_close(
        value(parameters(), DIT), value(parameters(), DIT.clone(**changes)), rtol=1e-4, atol=1e-6
    )


def test_collected_features_are_those_of_the_layers_asked_for():
    model = DIT.clone(collect=(0, 2))
    inputs = (latents(), Call.at(T), conditions())
    out, aux = jax.jit(model.apply)({"params": parameters()}, *inputs)
    np.testing.assert_array_equal(out, runner()(parameters(), latents(), T, conditions()))
    assert aux.features.shape == (2, 2, 3 * 4, 32)
    shallow = jax.tree.map(lambda leaf: leaf[:1], parameters()["layers"])
    one = DIT.clone(depth=1, collect=(0,))
    _, first = jax.jit(one.apply)({"params": {**parameters(), "layers": shallow}}, *inputs)
    np.testing.assert_allclose(first.features[0], aux.features[0], atol=1e-6)


def test_new_values_do_not_compile_again():
    model = DIT.clone()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(params, x, t, told):
        return model.apply({"params": params}, x, Call.at(t), told)[0]

    run(parameters(), latents(), T, conditions())
    run(parameters(), latents(1), T[::-1], conditions(jax.random.key(9), lengths=(1, 6)))


def test_parameters_are_float32_and_products_run_in_the_given_type():
    model = DIT.clone(dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(parameters(model))} == {jnp.dtype("float32")}
    out = runner(model)(parameters(), latents(), T, conditions())
    exact = runner()(parameters(), latents(), T, conditions())
    assert out.dtype == jnp.float32
    error = np.linalg.norm(out - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 3e-2  # bfloat16 has 8 bits: each product is off by up to 2^-9


def test_bad_inputs_are_named():
    with pytest.raises(ShapeError, match="5 x 4 cells.*multiples of the patch size 2"):
        jax.eval_shape(
            DIT.init, jax.random.key(0), jnp.zeros((2, 3, 5, 4, 4)), Call.at(T), conditions()
        )
    channel = ChannelCondition(latents(), jnp.ones(SHAPE[:-1], bool))
    with pytest.raises(ConfigError, match="channel condition.*ports text"):
        told = Conditions(conditions().text, channel)
        DIT.apply({"params": parameters()}, latents(), Call.at(T), told)


def test_a_network_that_is_told_where_a_step_leads_says_the_plain_velocity_of_no_step():
    told = DIT.clone(next_share=0.25)
    params = drawn(told.init, jax.random.key(1), latents(), Call.at(T), conditions())["params"]
    assert not np.any(params["time_next"]["out"]["kernel"])
    without = {name: leaf for name, leaf in params.items() if name != "time_next"}

    def said(params, t_next, model=told):
        call = Call.at(T, t_next)
        run = jax.jit(lambda params: model.apply({"params": params}, latents(), call, conditions()))
        return run(params)[0]

    plain = said(without, 0.5 * T, DIT)  # without a share no t_next is read, and no part is made
    np.testing.assert_array_equal(plain, said(without, T, DIT))
    np.testing.assert_array_equal(plain, said(params, T))
    assert np.abs(plain - said(params, 0.5 * T)).max() > 1e-4
    with pytest.raises(ConfigError, match="routers in a network that jumps"):
        jax.eval_shape(lambda: said(params, T, told.clone(dynamic=DynamicWidth())))
    trained = jax.tree.map(lambda leaf: leaf + 0.1, params["time_next"])
    assert np.abs(plain - said(params | {"time_next": trained}, T)).max() > 1e-4


def test_where_all_tokens_are_alike_only_absolute_places_tell_them_apart():
    even = jnp.broadcast_to(latents()[:, :1, :1, :1], SHAPE)
    placed = DIT.clone(position_waves=2)
    params = drawn(placed.init, jax.random.key(1), latents(), Call.at(T), conditions())["params"]

    def apart(kernel, axis):
        given = params | {"position_in": {"kernel": kernel}}
        out = runner(placed)(given, even, T, conditions())
        squares = out.reshape(*SHAPE[:2], 2, 2, 2, 2, -1)  # patches of two by two cells
        return np.abs(np.diff(squares, axis=axis)).max()

    shape = params["position_in"]["kernel"].shape
    for axis in (2, 4):
        assert apart(jnp.zeros(shape), axis) < 1e-4
        assert apart(jax.random.normal(jax.random.key(2), shape), axis) > 1e-2


def test_a_place_is_a_share_of_the_frame_whatever_its_size():
    small, large = (
        np.asarray(waves_of_places(size, size, 3)).reshape(size, size, -1) for size in (2, 6)
    )
    np.testing.assert_allclose(small, large[1::3, 1::3], atol=1e-6)
