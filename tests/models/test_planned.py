"""A model that plans: its port, its codes, the language model of them, and the plan of a run."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm import ConfigError, samplers
from jvdm.models import VideoDiT, latent_codes
from jvdm.models.code_guide import CodeGuide, counted
from jvdm.models.conditions import Conditions, PlanCondition, in_sections
from jvdm.models.latent_codes import LatentCodes
from jvdm.models.planned import KNOWN, PlannedDiT
from jvdm.samplers import Call, initial_noise, lag_matrix, linspace_levels, windowed
from tests.generate.nano import drawn
from tests.models.small import conditions

SIZES: Any = {"width": 32, "depth": 2, "latent_channels": 4, "head_dim": 16}
SIZES |= {"rotary_axes": (4, 6, 6), "dtype": "float32"}
PORT: Any = VideoDiT(**SIZES, ports=("text", "plan"))
MODEL: Any = PlannedDiT(**SIZES, codes=16, memory=2)
FLOW, TOLD, FRAMES = samplers.rectified_flow(), conditions(), 5
X = jax.random.normal(jax.random.key(3), (2, FRAMES, 4, 4, 4))
T = jnp.ones((2, FRAMES))


@functools.cache
def parameters(model: Any = MODEL) -> Any:
    """Random ones of every size, so that no port is shut."""
    made = drawn(model.init, jax.random.key(1), X, Call.at(T), TOLD)["params"]
    leaves, tree = jax.tree.flatten(made)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    more = [
        0.2 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, [leaf + new for leaf, new in zip(leaves, more, strict=True)])


@functools.cache
def runner(model: Any) -> Any:
    """A network as a compiled function; returns prediction and carry."""
    params = parameters(model)
    return jax.jit(lambda x, t, told: model.apply({"params": params}, x, Call.at(t), told))


def plan_of(x=X, known=(True, True)) -> Conditions:
    return Conditions(TOLD.text, plan=PlanCondition(jnp.sin(x), jnp.array(known)))


def test_a_plan_changes_clips_that_have_one_and_a_fresh_port_changes_none():
    without = np.asarray(runner(PORT)(X, T, Conditions(TOLD.text))[0])
    said = np.asarray(runner(PORT)(X, T, plan_of(known=(True, False)))[0])
    np.testing.assert_array_equal(said[1], without[1])
    assert np.abs(said[0] - without[0]).max() > 1e-2
    fresh = drawn(PORT.init, jax.random.key(1), X, Call.at(T), TOLD)

    @jax.jit
    def both(params):
        return [PORT.apply(params, X, Call.at(T), told)[0] for told in (TOLD, plan_of())]

    np.testing.assert_array_equal(*both(fresh))


def test_the_first_half_of_the_layers_reads_the_plan():
    params = parameters(PORT)
    slope = jax.jit(
        jax.grad(lambda p: PORT.apply({"params": p}, X, Call.at(T), plan_of())[0].sum())
    )(params)["layers"]["plan"]
    assert np.abs(slope[0]).max() > 0 and not np.any(slope[1])


@functools.cache
def coder() -> Any:
    """Codes of random parameters, and these."""
    codes = LatentCodes(4, codes=16, width=16, dtype="float32")
    return codes, drawn(codes.init, jax.random.key(0), X)


def test_codes_are_of_their_frame_and_say_what_training_saw():
    codes, params = coder()
    coded = codes.apply(params, X)
    assert coded.codes.shape == (2, FRAMES, 4) and len(np.unique(coded.codes)) > 4
    np.testing.assert_array_equal(codes.apply(params, X, method="encode"), coded.codes)
    said = codes.apply(params, coded.codes, 4, 4, method="decode")
    np.testing.assert_allclose(said, coded.rebuilt, rtol=1e-5, atol=1e-5)
    other = codes.apply(params, X.at[:, 2].set(0.0), method="encode")
    np.testing.assert_array_equal(np.delete(other, 2, 1), np.delete(coded.codes, 2, 1))
    corner = codes.apply(params, X.at[:, :, :2, 2:].set(0.0), method="encode")
    np.testing.assert_array_equal(np.delete(corner, 1, 2), np.delete(coded.codes, 1, 2))
    assert np.any(corner[..., 1] != coded.codes[..., 1])


def test_a_code_is_the_nearest_of_the_table_and_every_part_learns(monkeypatch):
    codes, params = coder()
    bound: Any = codes.bind(params)
    vectors = np.asarray(bound._vectors(X)).reshape(-1, 8)
    table = np.asarray(params["params"]["table"])
    table = table / np.linalg.norm(table, axis=-1, keepdims=True)
    away = np.linalg.norm(vectors[:, None] - table[None], axis=-1)
    np.testing.assert_array_equal(away.argmin(-1), np.asarray(codes.apply(params, X).codes).ravel())
    monkeypatch.setattr(latent_codes, "_SPREAD", 0.0)  # it moves the table too
    slopes = jax.grad(lambda p: codes.apply(p, X).loss)(params)["params"]
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slopes))
    silent = jax.grad(lambda p: codes.apply(p, X).rebuilt.sum())(params)["params"]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(silent))


@pytest.mark.parametrize("weight", [0.0, latent_codes._SPREAD])
def test_codes_stay_in_use_when_they_are_trained_to(weight, monkeypatch):
    """From a table whose vectors lie in almost one direction: 8.6 codes are in use."""
    monkeypatch.setattr(latent_codes, "_SPREAD", weight)
    codes, params = coder()
    first = {**params["params"], "table": 1.0 + 0.05 * params["params"]["table"]}

    @jax.jit
    def trained(params):
        def one(_, p):
            slopes = jax.grad(lambda p: codes.apply(p, X).loss)(p)
            return jax.tree.map(lambda leaf, slope: leaf - 0.3 * slope, p, slopes)

        return codes.apply(jax.lax.fori_loop(0, 200, one, params), X).used

    assert (float(trained({"params": first})) > 9) == bool(weight)  # 10.6, and 6.7 without


GUIDE: Any = CodeGuide(
    16, frames=2, width=32, depth=2, head_dim=16, axes=(4, 6, 6), dtype="float32"
)
CODES = jax.random.randint(jax.random.key(5), (2, FRAMES, 4), 0, 16)


@functools.cache
def foretold(depth: int = 2) -> Any:
    """The language model of codes as a compiled function, and its parameters."""
    guide = GUIDE.clone(depth=depth)
    params = drawn(lambda key: guide.init(key, CODES, 2, TOLD.text), jax.random.key(0))
    return jax.jit(lambda codes, text: guide.apply(params, codes, 2, text)), params


def test_a_code_is_foretold_from_those_before_it_of_two_frames_and_the_prompt():
    run = foretold(depth=1)[0]
    said = np.asarray(run(CODES, TOLD.text)).reshape(2, -1, 16)
    other = np.asarray(run(CODES.at[:, 1, 2].add(1), TOLD.text)).reshape(2, -1, 16)
    moved = np.flatnonzero(np.abs(said - other).max((0, 2)) > 1e-6)
    assert moved.tolist() == list(range(7, 15))  # code 6 is read with 7, kept for eight codes
    states = TOLD.text.states
    longer = np.asarray(run(CODES, TOLD.text.replace(states=states.at[:, 4].add(1.0))))
    moved = np.abs(longer.reshape(2, -1, 16) - said).max((1, 2))
    assert moved[0] == 0 and moved[1] > 1e-4  # of three states and of five


def test_code_after_code_is_what_is_foretold_of_whole_clips():
    run, params = foretold()
    text, flat = TOLD.text, CODES.reshape(2, -1)

    @jax.jit
    def steps(params):
        guide = GUIDE.bind(params)
        reads, counts = guide.read(text), counted(text)
        ring, before, said = guide.start(2, 4), jnp.full(2, 16), []
        for index in range(flat.shape[1]):
            logits, ring = guide.step(before, ring, 4, 2, reads, counts)
            before = flat[:, index]
            said.append(logits)
        return jnp.stack(said, 1)

    expected = np.asarray(run(CODES, text)).reshape(2, -1, 16)
    np.testing.assert_allclose(steps(params), expected, rtol=1e-4, atol=1e-5)


def test_frames_that_are_known_are_read_and_equal_noise_has_an_equal_plan():
    t = T.at[:, 0].set(0.0).at[:, 1].set(KNOWN / 2).at[1, 1].set(KNOWN + 0.01)
    carry = runner(MODEL)(X, t, TOLD)[1]
    codes = np.asarray(carry.codes)
    read = np.asarray(_applied("coder", X / (1 - jnp.minimum(t, KNOWN))[..., None, None, None]))
    np.testing.assert_array_equal(codes[:, 0], read[:, 0])
    np.testing.assert_array_equal(codes[0, 1], read[0, 1])
    assert np.any(codes[1, 1] != read[1, 1]) and np.any(codes[:, 2:] != read[:, 2:])
    turned = runner(MODEL)(X[::-1], t[::-1], _turned())[1]
    np.testing.assert_array_equal(turned.codes[::-1], codes)
    other = runner(MODEL)(X.at[:, 3].add(1.0), t, TOLD)[1].codes
    np.testing.assert_array_equal(other[:, :3], codes[:, :3])
    assert np.any(other[:, 3] != codes[:, 3])


def _applied(part: str, x: Any) -> Any:
    codes = LatentCodes(4, 16, width=32, dtype="float32")
    return codes.apply({"params": parameters()[part]}, x, method="encode")


def _turned() -> Any:
    return jax.tree.map(lambda leaf: leaf[::-1], TOLD)


def test_codes_are_drawn_as_they_are_foretold():
    logits = jnp.array([1.0, 0.0, -1.0, 2.0])
    frames = jax.random.normal(jax.random.key(9), (4000, 1, 2, 2, 4))
    for square, temperature in ((0, 1.0), (3, 1.0), (0, 0.5)):
        given = (frames, jnp.zeros((4000, 4), int), jnp.int32(square))
        model = MODEL.clone(temperature=temperature)
        draws = model.drawn(*given, jnp.broadcast_to(logits, (4000, 4)))
        shares = np.bincount(draws, minlength=4) / 4000
        expected = np.asarray(jax.nn.softmax(logits / temperature))
        # Four standard deviations of a share of 4,000 draws.
        assert (np.abs(shares - expected) < 4 * np.sqrt(expected / 4000)).all()
    likeliest = MODEL.clone(temperature=0.0)
    assert (likeliest.drawn(*given, jnp.broadcast_to(logits, (4000, 4))) == 3).all()


def test_the_likeliest_plan_is_what_is_foretold_of_itself():
    greedy = MODEL.clone(temperature=0.0)
    codes = runner(greedy)(X, T, TOLD)[1].codes
    given = (codes, 2, TOLD.text)
    said = greedy.apply({"params": parameters(greedy)}, *given, method="foretold")
    np.testing.assert_array_equal(codes, np.argmax(said, -1))
    assert len(np.unique(codes)) > 2


def test_a_window_reads_the_plan_of_its_frames():
    """One that begins with frame 2: the ring of three frames has it in the last place."""
    row = Call.at(T[:, :3]).row._replace(frame=jnp.int32(2))
    call, params = Call.at(T[:, :3])._replace(row=row), {"params": parameters()}

    @jax.jit
    def both(x):
        carry = MODEL.start(3, 4, 4, jnp.arange(3.0), 2)
        said, after = MODEL.apply(params, x, call, TOLD, carry)
        codes = after.codes[:, jnp.array([2, 0, 1])]
        rough: Any = LatentCodes(4, 16, width=32, dtype="float32").apply(
            {"params": parameters()["coder"]}, codes, 4, 4, method="decode"
        )
        told = Conditions(TOLD.text, plan=PlanCondition(rough, jnp.ones(2, bool)))
        return said, MODEL.apply(params, x, call, told, carry.layers, method="along")[0]

    np.testing.assert_allclose(*both(X[:, :3]), rtol=1e-5, atol=1e-5)


def test_the_plan_follows_the_outline_and_the_network_its_prompt():
    told = Conditions(TOLD.text, outline=_turned().text)
    swapped = Conditions(_turned().text, outline=TOLD.text)
    mine, theirs, both = (runner(MODEL)(X, T, one) for one in (TOLD, told, swapped))
    np.testing.assert_array_equal(mine[1].codes, both[1].codes)
    assert np.any(mine[1].codes != theirs[1].codes)
    assert np.abs(mine[0] - both[0]).max() > 1e-3


def test_a_model_that_does_not_follow_is_the_network_without_a_plan():
    alone = MODEL.clone(follows=False)
    params = parameters()

    @jax.jit
    def both(params):
        said = alone.apply({"params": params}, X, Call.at(T), TOLD)[0]
        plan = PlanCondition(X, jnp.zeros(2, bool))
        given = (X, Call.at(T), Conditions(TOLD.text, plan=plan))
        return said, alone.apply({"params": params}, *given, method="along")[0]

    np.testing.assert_array_equal(*both(params))


def test_windows_have_the_plan_of_the_whole_video():
    """Of windows that a call sees one after the other, and a carry of their size."""
    noise = initial_noise(jax.random.key(4), jnp.arange(2), FRAMES, (4, 4, 4))
    params = parameters()

    def run(matrix):
        def predict(x, call, carry):
            return MODEL.apply({"params": params}, x, call, TOLD, carry)

        denoise = samplers.make_denoiser(predict, FLOW)
        carry = MODEL.start(matrix.window, 4, 4, jnp.arange(FRAMES, dtype=jnp.float32), 2)
        given = (samplers.Euler(), FLOW, matrix, noise, jax.random.key(4))
        return samplers.sample(denoise, *given, carry=carry)

    whole = lag_matrix(linspace_levels(2), FRAMES, lag=2)
    part = windowed(whole, context=2)
    expected, found = (jax.jit(lambda m=matrix: run(m))().carry for matrix in (whole, part))
    assert part.window == 3 and found.codes.shape[1] == 3
    last = np.asarray(expected.codes)[:, 2:]
    np.testing.assert_array_equal(np.asarray(found.codes)[:, [2, 0, 1]], last)
    assert int(found.ring.made) == FRAMES * 4


def test_what_cannot_be_planned_is_refused():
    text: Any = TOLD.text
    with pytest.raises(ConfigError, match="without one prompt"):
        sections = Conditions(in_sections((text, text), (0, 2), FRAMES))
        MODEL.apply({"params": parameters()}, X, Call.at(T), sections)
    with pytest.raises(ConfigError, match="its plan is made from prompts alone"):
        MODEL.clone(ports=("text", "channel")).apply({"params": {}}, X, Call.at(T), TOLD)
    with pytest.raises(ConfigError, match="latents of 4 x 5 cells"):
        MODEL.start(3, 4, 5)
