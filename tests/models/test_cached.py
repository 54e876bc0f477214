"""Keys and values that are kept: cached equals recomputed, whatever the rows and the solver."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm import samplers
from jvdm.attention import CachedCausal, Dense, FrameCausal
from jvdm.samplers import cached, initial_noise, lag_matrix, linspace_levels, windowed
from tests.models.small import DIT, conditions, parameters

FRAMES, KEY, LEVELS = 5, jax.random.key(4), linspace_levels(3)
FLOW, TOLD, EULER = samplers.rectified_flow(), conditions(), samplers.Euler()
OTHER = jax.tree.map(lambda leaf: leaf[::-1], TOLD)
CLOSE = 1e-5 if jax.default_backend() == "cpu" else 2e-4
PLACES = jnp.arange(FRAMES, dtype=jnp.float32)
NOISE = jax.jit(lambda: initial_noise(KEY, jnp.arange(2), FRAMES, (4, 4, 4)))()


@functools.cache
def row_of(model) -> Any:
    """One row of a run, compiled once for matrices of one shape."""

    def run(params, told, matrix, state, row):
        def predict(x, call, carry):
            return model.apply({"params": params}, x, call, told, carry)

        denoise = samplers.make_denoiser(predict, FLOW)
        return samplers.advance(denoise, EULER, FLOW, matrix, state, row, 1)

    return jax.jit(run)


def rows(
    policy, matrix, state=None, span=(0, 20), *, noise=NOISE, depth=3, told=TOLD, places=PLACES
):
    """The state after some rows; `depth` layers of the network, `places` of the frames in time."""
    model, matrix = DIT.clone(policy=policy, depth=depth), samplers.pad_rows(matrix, 24)
    if state is None:
        carry = model.start(matrix.window, 4, 4, places, 2)
        state = samplers.start(EULER, noise, KEY, carry)
    params = parameters()
    params = {**params, "layers": jax.tree.map(lambda leaf: leaf[:depth], params["layers"])}
    for row in range(*span):
        state = row_of(model)(params, told, matrix, state, np.int32(row))
    return state


@pytest.mark.parametrize(
    ("lag", "block", "rotary"),
    [(3, 1, "write"), (3, 2, "write"), (1, 1, "read")],
    ids=["one by one", "blocks", "wave, turned when read"],
)
def test_cached_equals_recomputed(lag, block, rotary):
    """To rounding: the sums of softmax and of products run over arrays of other shapes.

    Devices other than CPUs multiply with fewer digits of float32.
    """
    whole = lag_matrix(LEVELS, FRAMES, lag, block)
    expected = rows(FrameCausal(block), whole).x
    policy = CachedCausal(frames=FRAMES, block=block, rotary=rotary)
    matrix = samplers.validate(cached(whole))
    assert matrix.window < FRAMES
    found = rows(policy, matrix).x
    np.testing.assert_allclose(found, expected, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize(
    ("lag", "block", "rules"),
    [
        (1, 1, {}),
        (1, 1, {"rotary": "read", "sink": 1}),
        (2, 1, {"frames": 1, "rotary": "read"}),
        (1, 2, {"weight": 0.3}),
        (1, 1, {"frames": 1, "packed": (2,), "patches": (2,)}),
    ],
    ids=["wave", "sink, turned when read", "shorter than the window", "blocks, weighed", "packed"],
)
def test_the_end_of_a_clip_reads_what_a_longer_clip_reads(lag, block, rules):
    """A cached frame knows what it saw; in the window it would see what is left of that."""
    count, frames = 8, rules.pop("frames", 2 * block)
    policy = CachedCausal(frames + rules.get("sink", 0), block=block, **rules)
    noise = initial_noise(KEY, jnp.arange(2), count, (4, 4, 4))

    def made(length: int) -> Any:
        matrix = cached(lag_matrix(LEVELS, length, lag, block), frames)
        samplers.check_cache(matrix, policy.slots)
        places = jnp.arange(length, dtype=jnp.float32)
        return rows(policy, matrix, span=(0, 24), noise=noise[:, :length], places=places).x

    whole = made(count)
    for end in (4, 4 + block):
        np.testing.assert_allclose(made(end), whole[:, :end], rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize(("lag", "block"), [(3, 1), (1, 2)])
def test_packed_in_patches_of_one_token_it_equals_recomputed(lag, block):
    """Whole frames leave the ring after one block and are read from the others."""
    whole = lag_matrix(LEVELS, FRAMES, lag, block)
    expected = rows(FrameCausal(block), whole).x
    policy = CachedCausal(frames=block, block=block, packed=(1, 3), patches=(1, 1))
    found = rows(policy, cached(whole)).x
    np.testing.assert_allclose(found, expected, rtol=CLOSE, atol=CLOSE)


def test_given_frames_are_written_before_others_read_them():
    whole = samplers.freeze(lag_matrix(LEVELS, FRAMES, 3), [0, 1])
    expected = rows(FrameCausal(), whole).x
    found = rows(CachedCausal(FRAMES), cached(whole)).x
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)
    np.testing.assert_array_equal(found[:, :2], NOISE[:, :2])


def test_no_frame_knows_what_follows():
    matrix, policy = cached(lag_matrix(LEVELS, FRAMES, 3)), CachedCausal(FRAMES)
    plain = rows(policy, matrix).x
    other = rows(policy, matrix, noise=NOISE.at[:, 2].add(1.0)).x
    np.testing.assert_array_equal(other[:, :2], plain[:, :2])
    assert (np.abs(other[:, 2:] - plain[:, 2:]).max((0, 2, 3, 4)) > 1e-3).all()


@pytest.mark.parametrize("block", [1, 2])
def test_a_truncated_cache_never_saw_what_was_dropped(block):
    """Bit by bit: the same programs on the same values."""
    policy = CachedCausal(FRAMES, block=block, rotary="write" if block == 1 else "read")
    matrix = cached(lag_matrix(LEVELS, FRAMES, 3, block))
    early = 8 // block  # three steps and a write for each block
    two = rows(policy, matrix, span=(0, early))
    four = rows(policy, matrix, two, span=(early, 2 * early))
    assert (np.asarray(four.carry.layers.frames)[0, :4] == [0, 1, 2, 3]).all()
    dropped = four.carry.replace(layers=four.carry.layers.truncate(2))
    assert (np.asarray(dropped.layers.frames)[0] == [0, 1, -1, -1, -1]).all()
    again = rows(policy, matrix, two._replace(carry=dropped), span=(early, 20))
    kept = rows(policy, matrix, two._replace(carry=four.carry), span=(early, 20))
    plain = rows(policy, matrix, two, span=(early, 20))
    np.testing.assert_array_equal(again.x, plain.x)
    np.testing.assert_array_equal(kept.x, plain.x)  # later frames are never read too early


@pytest.mark.parametrize("rotary", ["write", "read"])
def test_a_cut_equals_recomputed_with_places_that_jump(rotary):
    """The third frame and those after it are seven places later."""
    whole, policy = lag_matrix(LEVELS, FRAMES, 3), CachedCausal(FRAMES, rotary=rotary)
    matrix, early = cached(whole), 8  # three steps and a write for each of two frames
    two = rows(policy, matrix, span=(0, early))
    cut = two._replace(carry=two.carry.replace(layers=two.carry.layers.cut(2, 7)))
    found = rows(policy, matrix, cut, span=(early, 20))
    expected = rows(FrameCausal(), whole, places=PLACES + 7 * (PLACES >= 2)).x
    np.testing.assert_allclose(found.x, expected, rtol=CLOSE, atol=CLOSE)
    plain = rows(policy, matrix, two, span=(early, 20)).x
    np.testing.assert_array_equal(found.x[:, :2], plain[:, :2])
    assert (np.abs(found.x - plain)[:, 2:].max((0, 2, 3, 4)) > 1e-3).all()
    none = two._replace(carry=two.carry.replace(layers=two.carry.layers.cut(2, 0)))
    np.testing.assert_array_equal(rows(policy, matrix, none, span=(early, 20)).x, plain)


@pytest.mark.parametrize(("policy", "leaks"), [(FrameCausal(), False), (Dense(), True)], ids=str)
def test_what_looks_ahead_is_found_out(policy, leaks):
    """The same comparison as of cached frames, on a wave that feeds the whole video."""
    whole = lag_matrix(LEVELS, FRAMES, 3)
    plain = rows(policy, whole).x
    other = rows(policy, whole, noise=NOISE.at[:, 2].add(1.0)).x
    assert np.array_equal(other[:, :2], plain[:, :2]) != leaks


def test_rewritten_frames_are_those_of_what_is_told_now():
    """As if they had been given under the other prompt from the beginning, and latents stay."""
    whole, policy = lag_matrix(LEVELS, FRAMES, 3), CachedCausal(FRAMES)
    old = rows(policy, cached(whole))
    again = samplers.rewritten(LEVELS, FRAMES)
    state = samplers.start(EULER, old.x, KEY, old.carry)
    found = rows(policy, again, state, told=OTHER)
    given = samplers.freeze(whole, range(FRAMES - 1))
    expected = rows(policy, cached(given), noise=old.x, told=OTHER).carry.layers
    now, before = found.carry.layers, old.carry.layers
    np.testing.assert_array_equal(now.frames[0], np.arange(FRAMES))
    for name in ("k", "v"):
        a, b, c = (getattr(layers, name)[:, :, :-1] for layers in (now, expected, before))
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)
        assert np.abs(a - c).max() > 1e-2
    np.testing.assert_array_equal(found.x, old.x)


def test_a_ring_is_a_window_where_frames_know_only_themselves():
    """In one layer keys and values of a clean frame depend on that frame alone."""
    whole = lag_matrix(LEVELS, FRAMES, 3)
    expected = rows(FrameCausal(), windowed(whole, context=2), depth=1).x
    policy = CachedCausal(frames=2, rotary="read")
    found = rows(policy, cached(whole, lookback=2), depth=1).x
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)


RING = CachedCausal(frames=3, sink=1, rotary="read")
STREAM = samplers.stream_rows(LEVELS, 3, kept=True)


@functools.cache
def streaming() -> tuple[Any, Any]:
    """A stream whose frames are written to a ring with a sink: its start and its step."""
    model = DIT.clone(policy=RING)

    def denoiser(params, told):
        def predict(x, call, carry):
            return model.apply({"params": params}, x, call, told, carry)

        return samplers.make_denoiser(predict, FLOW)

    @jax.jit
    def begin(params):
        carry, shape = model.start(1, 4, 4, batch=2), (2, 4, 4, 4)
        denoise = denoiser(params, TOLD)
        return samplers.stream_init(denoise, EULER, FLOW, STREAM, shape, KEY, carry=carry)

    @jax.jit
    def step(params, state, told):
        return samplers.stream_step(denoiser(params, told), EULER, FLOW, STREAM, state)

    return begin(parameters()), functools.partial(step, parameters())


def test_a_stream_reads_what_it_wrote_for_ever():
    """Cached chunks equal one long run of the same ring and sink; the cache does not grow."""
    whole = rows(RING, cached(lag_matrix(LEVELS, FRAMES, 3), lookback=3))
    assert sorted(np.asarray(whole.carry.layers.frames)[0].tolist()) == [0, 2, 3]
    state, step = streaming()
    for frame in range(FRAMES):
        state, chunk = step(state, TOLD)
        np.testing.assert_allclose(chunk[:, 0], whole.x[:, frame], rtol=2e-4, atol=2e-4)
    assert state.run.carry.layers.k.shape == (3, 2, 3, 4, 2, 16)


def test_layers_hand_on_what_a_row_writes_alone():
    """A stream writes in the last row of its cycle, and its program knows."""
    (state, _), changes = streaming(), []

    def predict(x, call, carry):
        y, after = DIT.clone(policy=RING).apply({"params": parameters()}, x, call, TOLD, carry)
        changes.append(after.layers.k is not carry.layers.k)
        return y, after

    denoise = samplers.make_denoiser(predict, FLOW)
    jax.eval_shape(lambda state: samplers.stream_step(denoise, EULER, FLOW, STREAM, state), state)
    assert changes == [False, True]


def test_frames_of_a_wrong_guess_leave_no_trace_in_the_cache():
    """Bit by bit, though the ring has overwritten what the frames before it saw."""
    state, step = streaming()
    state, _ = step(state, TOLD)
    ahead = samplers.speculate(step, state, TOLD, 3)
    told = [TOLD, OTHER, TOLD]
    went, kept = samplers.accept(ahead, told)
    plain, expected = [], state
    for now in told:
        expected, chunk = step(expected, now)
        plain.append(chunk)
    assert len(kept) == 1
    np.testing.assert_array_equal(kept[0], plain[0])
    for now, chunk in zip(told[1:], plain[1:], strict=True):
        went, found = step(went, now)
        np.testing.assert_array_equal(found, chunk)
    jax.tree.map(np.testing.assert_array_equal, went.run.carry, expected.run.carry)
    assert np.abs(ahead.chunks[1] - plain[1]).max() > 1e-3
