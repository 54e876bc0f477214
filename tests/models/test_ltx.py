"""LTXDiT: the numbers of the reference, a level for every frame, places in seconds."""

import functools
import importlib
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jvdm.attention import Draft, FrameCausal, TokenGrid
from jvdm.models import Conditions, TextStates
from jvdm.models.layers import rotate
from jvdm.models.ltx import FractionalPositions, LTXDiT
from jvdm.pipeline.loading import ready
from jvdm.samplers import Call
from jvdm.weights.convert import converted
from pallas_kernels.attention.pallas_tpu import schedule
from tests.parity.references import Reference, inputs, off
from tests.vae.nano import QUICK

ltx = importlib.import_module("jvdm.configs.families.ltx")
REFERENCE = Reference("ltx_transformer")
LTX = ltx.transformer(REFERENCE.config).clone(dtype="float32")
X, TEXT = inputs((2, 24, 8), (2, 7, 32))
X = jnp.asarray(X.reshape(2, 3, 2, 4, 8))
LENGTHS = jnp.array([7, 4])
TOLD = Conditions(TextStates(jnp.asarray(TEXT), LENGTHS))
FRAMES = jnp.array([[0.0, 400.0, 900.0], [30.0, 60.0, 1000.0]])


@functools.cache
def parameters():
    shapes = jax.eval_shape(LTX.init, jax.random.key(0), X, Call.at(FRAMES), TOLD)["params"]
    return converted(ltx.transformer_names(LTX), REFERENCE.weights, shapes, "a folder")[0]


def predict(t, carry=None, told=TOLD, model=LTX):
    return model.apply({"params": parameters()}, X, Call.at(t), told, carry)[0]


@functools.cache
def runner(model=LTX):
    return jax.jit(functools.partial(predict, model=model), compiler_options=QUICK)


def test_the_reference_is_met_with_a_level_per_clip_and_per_frame():
    clip = jnp.broadcast_to(jnp.array([500.0, 200.0])[:, None], (2, 3))
    assert off(runner()(clip), REFERENCE.outputs["clip"]) < 1e-4
    faster = LTX.start(3, 2, 4, jnp.arange(3) * 25 / 30)
    assert off(runner()(FRAMES, faster), REFERENCE.outputs["frames"]) < 1e-4
    later = runner(LTX.clone(from_first=True))
    assert off(later(FRAMES), REFERENCE.outputs["from_first"]) < 1e-4


def test_the_reference_is_met_by_heads_of_the_size_of_the_13b_model():
    """With a level for every frame, which are placed as in the pipelines of 0.9.5 and later."""
    reference = Reference("ltx_transformer_13b")
    model = ltx.transformer(reference.config).clone(dtype="float32", from_first=True)
    assert model.head_dim == 128
    shapes = jax.eval_shape(model.init, jax.random.key(0), X, Call.at(FRAMES), TOLD)["params"]
    params = converted(ltx.transformer_names(model), reference.weights, shapes, "a folder")[0]

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(t):
        return model.apply({"params": params}, X, Call.at(t), TOLD)[0]

    assert off(run(FRAMES), reference.outputs["from_first"]) < 1e-4


def test_one_level_gives_the_bits_of_equal_levels_per_frame():
    one = jax.jit(lambda level: predict(jnp.full((2, 3), level)), compiler_options=QUICK)
    np.testing.assert_array_equal(one(400.0), runner()(jnp.full((2, 3), 400.0)))


def test_all_kernels_have_sixteen_bits_which_changes_nothing_of_such_files():
    network = LTX.clone(dtype="bfloat16")
    tree = ready(parameters(), network)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    kernels = {leaf.dtype for path, leaf in leaves if path[-1].key.startswith("kernel")}
    assert kernels == {jnp.dtype("bfloat16")}
    half = jax.jit(lambda tree: network.apply({"params": tree}, X, Call.at(FRAMES), TOLD)[0])
    made, told = half(tree), runner()(FRAMES)
    parts = {name: jax.tree.map(jnp.float32, tree[name]) for name in ("time_hidden", "time_out")}
    np.testing.assert_array_equal(half(tree | parts), made)
    assert np.sqrt(np.mean((made - told) ** 2)) < 2e-2 * told.std()


def test_padding_of_a_prompt_is_not_read():
    noise = jnp.where(jnp.arange(7)[None, :, None] < 4, TEXT, 9.0)
    padded = Conditions(TextStates(noise, LENGTHS))
    before, after = (runner()(FRAMES, None, told) for told in (TOLD, padded))
    np.testing.assert_array_equal(before[1], after[1])
    assert off(after[0], before[0]) > 1e-3


def test_a_causal_frame_sees_no_later_level():
    causal = runner(LTX.clone(policy=FrameCausal()))
    before, after = causal(FRAMES), causal(FRAMES.at[:, 1].set(50.0))
    same = [np.array_equal(before[:, frame], after[:, frame]) for frame in range(3)]
    assert same == [True, False, False]


@pytest.mark.parametrize(("heads", "size"), [(32, 64), (32, 128)])
def test_heads_of_the_published_sizes_turn_by_the_places_of_the_whole_width(heads, size):
    """Against the formula with complex numbers, in float64, before heads are divided."""
    grid, frames = TokenGrid(2, 2, 3, heads=heads, head_dim=size), np.array([3.0, 4.0])
    positions = FractionalPositions((8, 32, 32), 24.0, from_first=False)
    table = positions.table(jnp.asarray(frames, jnp.float32), grid)
    (x,) = inputs((12, heads * size))
    axes = (frames * 8 / 24 / 20, np.arange(2) / 64, np.arange(3) / 64)
    places = np.stack(np.meshgrid(*axes, indexing="ij"))
    each = heads * size // 6
    rates = 1e4 ** np.linspace(0, 1, each) * np.pi / 2
    angles = np.einsum("al,e->lea", 2 * places.reshape(3, -1) - 1, rates).reshape(12, -1)
    free = heads * size // 2 - 3 * each
    factors = np.exp(1j * np.pad(angles, ((0, 0), (free, 0))))
    turned = x.astype(np.float64).reshape(12, -1, 2) @ np.array([1, 1j]) * factors
    expected = np.stack([turned.real, turned.imag], -1).reshape(12, heads, -1, 2).swapaxes(2, 3)
    ours = x.reshape(1, 12, heads, -1, 2).swapaxes(3, 4).reshape(1, 12, heads, size)
    made = rotate(jnp.asarray(ours), table)[0]
    # The fastest angle is 1.6e4, which float32 knows to a few times 1e-3.
    np.testing.assert_allclose(made.reshape(expected.shape), expected, atol=3e-2)
    slow = slice(0, heads // 2)
    np.testing.assert_allclose(made.reshape(expected.shape)[:, slow], expected[:, slow], atol=1e-4)


@pytest.mark.parametrize(("videos", "apart"), [(2, True), (4, False)])
def test_angles_of_all_tokens_are_no_table_but_of_many_videos(videos, apart):
    x, t = jnp.tile(X, (videos // 2, 1, 1, 1, 1)), jnp.tile(FRAMES, (videos // 2, 1))
    text, lengths = (jnp.concatenate([part] * (videos // 2)) for part in (TEXT, LENGTHS))
    told = Conditions(TextStates(text, lengths))

    def run(x):
        return LTX.apply({"params": parameters()}, x, Call.at(t), told, None)[0]

    np.testing.assert_allclose(run(x)[-2:], runner()(FRAMES), atol=1e-5)
    (loop,) = (eqn for eqn in jax.make_jaxpr(run)(x).eqns if eqn.primitive.name == "scan")
    shapes = [variable.aval.shape for variable in loop.invars]
    assert ((3 * 2 * 4, LTX.width // 2) in shapes) != apart


def test_heads_turn_alike_in_an_order_of_tokens():
    tiles = LTX.clone(policy=Draft(0.9999, recall_queries=0, dense_layers=0, block=4))
    assert off(runner(tiles)(FRAMES), runner()(FRAMES)) < 1e-5


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs the wheel libtpu")
def test_the_2b_model_compiles_for_tpus_and_fits(monkeypatch):
    """121 frames of 512x768, a video on each of the four chips of v5e 2x2, which have 16 GB."""
    for name, value in schedule.ALONE.items():
        monkeypatch.setenv(name, value)
    mesh = Mesh(schedule.chips("v5e").ravel(), ("data",))
    model, videos = LTXDiT(), NamedSharding(mesh, PartitionSpec("data"))

    def shape(sizes, dtype="float32", sharding=videos) -> Any:
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)

    def forward(params, x, t, states, lengths):
        told = Conditions(TextStates(states, lengths))
        return model.apply({"params": params}, x, Call.at(t), told)[0]

    def param(path, leaf):
        is_kernel = path[-1].key == "kernel" and path[0].key not in model.wide
        everywhere = NamedSharding(mesh, PartitionSpec())
        return shape(leaf.shape, model.dtype if is_kernel else "float32", everywhere)

    told = Conditions(TextStates(shape((1, 128, 4096)), shape((1,), "int32")))
    small = (shape((1, 1, 1, 1, 128)), Call.at(jnp.zeros((1, 1))), told)
    params = jax.eval_shape(model.init, jax.random.key(0), *small)["params"]
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == 1_923_385_472
    given = (shape((4, 16, 16, 24, 128)), shape((4, 16)))
    given += (shape((4, 128, 4096), "bfloat16"), shape((4,), "int32"))
    params = jax.tree_util.tree_map_with_path(param, params)
    memory: Any = jax.jit(forward).lower(params, *given).compile().memory_analysis()
    held, used = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    print(f"LTX-2B, a chip of v5e: {held / 1e9:.2f} GB are held, {used / 1e9:.2f} GB used")
    assert held + used < 12e9  # 3.9 and 5.0 when this was written
