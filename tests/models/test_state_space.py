"""Scans in linear time: chunks, orders, overviews, and networks that have them."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.attention import Dense, FrameCausal, TemporalSwin, TokenGrid
from jvdm.errors import ConfigError
from jvdm.models import state_space
from jvdm.models.regions import Regions
from jvdm.models.state_space import Mamba2, TokenScan, chunked_scan, means_of_boxes
from jvdm.products import product_flops
from jvdm.samplers import Call
from tests.generate.nano import drawn
from tests.models.small import DIT, SHAPE, conditions, latents, parameters, runner

SCAN = Mamba2(state=8, chunk=5, review=(2, 2, 2))
MATE = DIT.clone(policy=TemporalSwin((2, 2, 2)), scan=SCAN)
T = jnp.array([[0.1, 0.5, 0.9], [0.3, 0.3, 1.0]])


@functools.cache
def tokens(length=37):
    """Inputs of a scan of three heads of four features, and a state before it."""
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = ((2, length, 3, 4), (2, length, 3), (2, length, 5), (2, length, 5), (2, 3, 4, 5))
    x, decay, b, c, state = (jax.random.normal(*pair) for pair in zip(keys, shapes, strict=True))
    return x, -jax.nn.softplus(decay), b, c, state


def one_by_one(x, decay, b, c, state, back=False):
    """The definition: token after token."""

    def step(state, given):
        x, decay, b, c = given
        state = jnp.exp(decay)[..., None, None] * state + x[..., None] * b[:, None, None]
        return state, jnp.einsum("bnps,bs->bnp", state, c)

    inputs = tuple(jnp.moveaxis(leaf, 1, 0) for leaf in (x, decay, b, c))
    state, y = jax.lax.scan(step, state, inputs, reverse=back)
    return jnp.moveaxis(y, 0, 1), state


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize(("chunk", "at_once"), [(4, 3), (7, 32), (64, 2), (1, 5)])
def test_chunks_are_the_scan_of_single_tokens_and_so_are_their_gradients(
    chunk, at_once, back, monkeypatch
):
    monkeypatch.setattr(state_space, "AT_ONCE", at_once)

    def both(scan):
        def weighed(*given):
            y, state = scan(*given, back=back)
            return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.cos(state)), (y, state)

        return jax.jit(jax.value_and_grad(weighed, argnums=range(5), has_aux=True))(*tokens())

    made, expected = both(functools.partial(chunked_scan, chunk=chunk)), both(one_by_one)
    # Sums of up to 37 numbers of size 1 to 10 in float32, in another order.
    for ours, theirs in zip(jax.tree.leaves(made), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_decays_that_underflow_leave_finite_results_and_gradients():
    x, decay, b, c, state = tokens()

    def total(decay):
        return jnp.sum(chunked_scan(x, 200 * decay, b, c, state, chunk=16)[0])

    value, gradient = jax.jit(jax.value_and_grad(total))(decay)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_a_scan_that_begins_with_the_state_of_another_goes_on_from_it():
    x, decay, b, c, _ = tokens()
    whole, end = chunked_scan(x, decay, b, c, chunk=8)
    cut = 14
    y, state = chunked_scan(x[:, :cut], decay[:, :cut], b[:, :cut], c[:, :cut], chunk=8)
    rest = (x[:, cut:], decay[:, cut:], b[:, cut:], c[:, cut:])
    y_rest, state = chunked_scan(*rest, state, chunk=8)
    np.testing.assert_allclose(jnp.concatenate([y, y_rest], 1), whole, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state, end, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axes", state_space.ORDERS)
def test_orders_are_permutations_with_an_inverse(axes):
    sides = (2, 3, 5)
    grid = jnp.arange(30).reshape(1, *sides, 1)
    ordered = state_space._in_order(grid, axes)
    assert sorted(ordered.ravel().tolist()) == list(range(30))
    places = np.stack(np.unravel_index(np.asarray(ordered[0, :, 0]), sides))
    steps = np.abs(np.diff(places, axis=1))
    # The last axis is the fastest: it alone changes but at the end of a line.
    assert (steps[axes[2]] > 0).all() and (steps[axes[0]] > 0).sum() == sides[axes[0]] - 1
    back = state_space._in_raster(ordered, axes, sides)
    np.testing.assert_array_equal(back, grid.reshape(1, 30, 1))


def test_review_tokens_are_means_of_boxes_also_at_the_ends():
    grid = np.random.default_rng(0).normal(size=(1, 3, 4, 5, 2)).astype(np.float32)
    found, counts = means_of_boxes(jnp.asarray(grid.reshape(1, 60, 2)), (3, 4, 5), (2, 2, 2))
    assert counts == (2, 2, 3)
    for number, (f, h, w) in enumerate(itertools.product(range(2), range(2), range(3))):
        box = grid[:, 2 * f : 2 * f + 2, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2]
        np.testing.assert_allclose(found[:, number], box.mean((1, 2, 3)), rtol=1e-5, atol=1e-6)


@functools.cache
def scan_of(rule, grid=TokenGrid(3, 2, 4)):  # noqa: B008
    """A scan of 24 tokens alone, and its parameters."""
    module = TokenScan(rule, 8, grid, "float32")
    x = jnp.zeros((1, grid.tokens, 16))
    params = drawn(module.init, jax.random.key(0), x, jnp.int32(0))
    return jax.jit(module.apply), params


def test_a_token_reads_all_before_and_after_it_and_layers_take_turns():
    run, params = scan_of(SCAN)
    x = jax.random.normal(jax.random.key(1), (1, 24, 16))
    moved = run(params, x.at[:, 11].add(3.0), jnp.int32(0)) - run(params, x, jnp.int32(0))
    assert (np.abs(moved).max(-1) > 0).all()
    layers = [np.asarray(run(params, x, jnp.int32(layer))) for layer in range(5)]
    np.testing.assert_array_equal(layers[0], layers[4])
    assert all(np.abs(one - other).max() > 1e-4 for one, other in itertools.pairwise(layers[:4]))
    fixed, params = scan_of(dataclasses.replace(SCAN, rotary=False))
    layers = [np.asarray(fixed(params, x, jnp.int32(layer))) for layer in range(2)]
    np.testing.assert_array_equal(layers[0], layers[1])


def test_turning_the_video_turns_what_the_layer_of_that_order_says():
    """Order 1 goes by columns: it is order 0 of the transposed frames."""
    rule = dataclasses.replace(SCAN, review=(2, 2, 2))
    x = jax.random.normal(jax.random.key(1), (1, 24, 16))
    run, params = scan_of(rule)
    turned, _ = scan_of(rule, TokenGrid(3, 4, 2))
    swap = x.reshape(1, 3, 2, 4, 16).swapaxes(2, 3).reshape(1, 24, 16)
    ours = run(params, x, jnp.int32(1)).reshape(1, 3, 2, 4, 16).swapaxes(2, 3)
    theirs = turned(params, swap, jnp.int32(0)).reshape(1, 3, 4, 2, 16)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_video_that_is_turned_round_is_read_by_the_other_scan():
    run, params = scan_of(SCAN, TokenGrid(2, 2, 4))
    inside = dict(params["params"])
    for name in ("taps", "common_taps", "rate", "step"):
        inside[name] = inside[name][::-1]
    columns = inside["in"]["kernel_3"]  # the steps of both scans
    swapped = jnp.roll(columns, columns.shape[1] // 2, 1)
    inside["in"] = {**inside["in"], "kernel_3": swapped}
    x = jax.random.normal(jax.random.key(1), (1, 16, 16))
    ours = run({"params": inside}, x[:, ::-1], jnp.int32(2))[:, ::-1]
    np.testing.assert_allclose(ours, run(params, x, jnp.int32(2)), rtol=1e-4, atol=1e-5)


def test_an_overview_tells_the_first_token_of_a_scan_what_comes_last():
    """Without one the scan to the end has not seen it; only the one to the beginning has."""
    x = jax.random.normal(jax.random.key(1), (1, 24, 16))
    for review, differs in ((None, False), ((2, 2, 2), True)):
        run, params = scan_of(dataclasses.replace(SCAN, review=review))
        late = params["params"]["taps"].at[1].set(0.0)  # the scan to the beginning writes nothing
        silent = {"params": {**params["params"], "taps": late}}
        moved = run(silent, x.at[:, -1].add(3.0), jnp.int32(0)) - run(silent, x, jnp.int32(0))
        assert (np.abs(moved[:, 0]).max() > 0) == differs


def test_a_network_of_scans_runs_with_any_levels_and_its_parameters_are_those_it_needs():
    params = parameters(MATE)
    assert {"scan", "self_attention"} <= set(params["layers"])
    run = runner(MATE)
    base = run(params, latents(), T, conditions())
    assert np.isfinite(base).all()
    assert np.abs(base - run(params, latents(), T.at[:, 1].set(0.05), conditions())).max() > 1e-3
    alone = DIT.clone(scan=dataclasses.replace(SCAN, beside=False))
    made = jax.eval_shape(alone.init, jax.random.key(0), latents(), Call.at(T), conditions())
    assert "self_attention" not in made["params"]["layers"]


def test_how_long_a_chunk_is_changes_nothing():
    params = parameters(MATE)
    long = MATE.clone(scan=dataclasses.replace(SCAN, chunk=64))
    given = (params, latents(), T, conditions())
    np.testing.assert_allclose(runner(MATE)(*given), runner(long)(*given), rtol=1e-3, atol=1e-4)


def test_operations_are_linear_in_frames():
    """Those of full attention are not."""

    def flops(model, frames):
        x = jnp.zeros((1, frames, 16, 16, 4))
        call, told = Call.at(jnp.ones((1, frames))), conditions()
        told = jax.tree.map(lambda leaf: leaf[:1], told)
        params = jax.eval_shape(model.init, jax.random.key(0), x, call, told)
        return product_flops(lambda params: model.apply(params, x, call, told)[0], params)

    few, many = (flops(MATE, frames) for frames in (8, 16))
    assert many / few == pytest.approx(2.0, rel=0.02)
    assert flops(DIT, 16) / flops(DIT, 8) > 2.4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"policy": FrameCausal()}, "FrameCausal beside a scan of all tokens"),
        ({"scan": Mamba2(state=0)}, "state 0.*at least 1"),
        ({"scan": Mamba2(review=(2, 0, 2))}, "review 0.*at least 1"),
        ({"head_dim": 24, "scan": Mamba2(beside=False)}, "64 features.*heads of 24"),
        ({"cache": Regions(), "policy": Dense()}, "KeptKeys beside a scan"),
    ],
)
def test_what_cannot_be_scanned_is_refused(fields, message):
    model = MATE.clone(**fields)
    with pytest.raises(ConfigError, match=message):
        model.start(*SHAPE[1:4])
        jax.eval_shape(model.init, jax.random.key(0), latents(), Call.at(T), conditions())
