"""A cache for each level: the past at its own noise, a sink that follows the scene."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm import samplers
from jvdm.attention import AttentionCall, Bank, FrameCausal, LevelBank, TokenGrid
from jvdm.attention.cached_causal import Made
from jvdm.attention.level_bank import cosines, replaced
from jvdm.errors import ConfigError
from jvdm.samplers import Call, cached_by_level, lag_matrix
from tests.models.small import DIT, parameters
from tests.models.test_cached import EULER, FLOW, FRAMES, KEY, LEVELS, TOLD, rows

CLOSE = 1e-5 if jax.default_backend() == "cpu" else 2e-4
GRID = TokenGrid(3, 1, 2, batch=2, heads=1, head_dim=4)


@functools.cache
def together() -> Any:
    """The latents of the synchronous run with frame-causal attention, before each row."""
    matrix = lag_matrix(LEVELS, FRAMES)
    return [rows(FrameCausal(), matrix, span=(0, row)).x for row in range(4)]


@pytest.mark.parametrize("lag", [1, 2, 3], ids=["a wave", "two rows apart", "one by one"])
def test_a_run_is_the_synchronous_one_whatever_its_order(lag):
    matrix = samplers.validate(cached_by_level(lag_matrix(LEVELS, FRAMES, lag)))
    assert matrix.window == -(-3 // lag) and samplers.cost(matrix).calls == 3 + 4 * lag
    found = rows(LevelBank(3, FRAMES, 0), matrix).x
    np.testing.assert_allclose(found, together()[-1], rtol=CLOSE, atol=CLOSE)
    plain = rows(FrameCausal(), lag_matrix(LEVELS, FRAMES, lag)).x
    assert np.abs(found - plain).max() > 1e-2  # which sees the past at other levels


def test_what_is_said_at_a_level_is_one_causal_call_on_all_frames_there():
    """The frame that is at level 1 last, behind four that passed it rows ago."""
    matrix = cached_by_level(lag_matrix(LEVELS, FRAMES, 1))
    row = FRAMES  # frame 4 is at level 1
    state = rows(LevelBank(3, FRAMES, 0), matrix, span=(0, row))
    assert matrix.index[row].tolist() == [3, 3, 3, 2, 1]
    told, params = TOLD, parameters()

    def said(model, x, call, carry=None):
        return model.apply({"params": params}, x, call, told, carry)[0]

    model = DIT.clone(policy=LevelBank(3, FRAMES, 0))
    first = int(matrix.start[row])
    mine = slice(first, first + matrix.window)
    where = Call.at(jnp.broadcast_to(LEVELS[matrix.index[row, mine]], (2, 3)))
    where = where._replace(
        row=where.row._replace(frame=jnp.int32(first), level=matrix.index[row, mine])
    )
    found = said(model, state.x[:, mine], where, state.carry)[:, -1]
    at_level = together()[1]
    expected = said(
        DIT.clone(policy=FrameCausal()), at_level, Call.at(jnp.full((2, FRAMES), LEVELS[1]))
    )
    np.testing.assert_allclose(found, expected[:, -1], rtol=CLOSE, atol=CLOSE)


def test_a_stream_goes_on_as_the_long_run_in_the_places_of_a_full_cache():
    """Three frames a level, eight chunks, one program."""
    policy, levels = LevelBank(3, 3, 1, refresh=-1.0), LEVELS
    model = DIT.clone(policy=policy, depth=1)
    params = {**parameters(), "layers": jax.tree.map(lambda x: x[:1], parameters()["layers"])}
    stream = samplers.stream_of(
        samplers.CachedMatrix(samplers.LagMatrix(1), by_level=True), levels, 9
    )

    def denoise():
        def predict(x, call, carry):
            return model.apply({"params": params}, x, call, TOLD, carry)

        return samplers.make_denoiser(predict, FLOW)

    @jax.jit
    def begin():
        carry = model.start(stream.buffer, 4, 4, batch=2)
        return samplers.stream_init(denoise(), EULER, FLOW, stream, (2, 4, 4, 4), KEY, carry=carry)

    def chunk(state):
        return samplers.stream_step(denoise(), EULER, FLOW, stream, state)

    step: Any = jax.jit(chunk)

    state, made = begin(), []
    for _ in range(8):
        state, latents = step(state)
        made.append(latents[:, 0])
    assert step._cache_size() == 1
    bank = state.run.carry.layers
    # The eighth chunk was frame 7; the one at level 1 is 8, at level 0 it was 9.
    np.testing.assert_array_equal(bank.frames[0, 0], [[0, 9, 8], [0, 7, 8], [0, 7, 6]])
    long = cached_by_level(lag_matrix(levels, 8, 1), lookback=1)
    noise = samplers.initial_noise(KEY, jnp.arange(2), 8, (4, 4, 4))
    places = jnp.arange(8, dtype=jnp.float32)
    run = rows(policy, long, noise=noise, depth=1, places=places)
    np.testing.assert_allclose(jnp.stack(made, 1), run.x, rtol=CLOSE, atol=CLOSE)


def test_frames_are_turned_when_they_are_read_and_stay_before_the_frame_that_reads():
    """Keys say their places: none of the past stands behind, however long the video is."""
    policy = LevelBank(2, 4, 2, refresh=-1.0)
    for frame in (1, 3, 60, 1000):
        held = np.full((2, 2, 4), -1)
        for level, now in ((1, frame), (0, frame + 1)):
            past = range(max(now - 2, 2), now)
            for known in (*range(min(now, 2)), *past):
                held[:, level, int(policy.slots(np.array([known]))[0])] = known
        state = dataclasses.replace(policy.init(GRID), frames=jnp.asarray(held))
        where = row(frame, [1, 0, 0])
        places = np.asarray(policy.positions(jnp.zeros(3), where, state))
        assert (places == np.minimum(frame + np.arange(3), 4)).all()
        read = np.asarray(read_places(policy, state, where))
        for at, level in ((0, 1), (1, 0)):
            there = held[0, level] >= 0
            assert (read[at][there] < places[at]).all() and (read[at][there] >= 0).all()
            assert len(set(read[at][there])) == there.sum()


def row(frame, levels, write=True) -> Any:
    """A row whose window begins at `frame`, its frames at these levels."""
    plain = Call.at(jnp.zeros((2, len(levels)))).row
    write = jnp.full(len(levels), write)
    return plain._replace(frame=jnp.int32(frame), level=jnp.asarray(levels), write=write)


def read_places(policy, state, where):
    """Where the policy reads cached frames, by frame of the window."""
    seen = []

    def turn(k, frames=None):
        return k if frames is None else k * 0 + frames.repeat(2)[None, :, None, None]

    def among(q, k, v, mask):
        seen.append(k.reshape(2, 3, -1, 2, 1, 4)[0, :, :-1, 0, 0, 0])
        return q

    x = jnp.zeros((2, GRID.tokens, 1, 4))
    call = AttentionCall(jnp.int32(0), where, jnp.zeros((2, 3)), GRID, turn=turn)
    policy.attend(x, x, x, state, call, among)
    return seen[0]


def scene(policy, frames, of):
    """The bank of two layers after `frames` frames at level 0, whose keys are `of(frame)`."""
    grid = dataclasses.replace(GRID, frames=1)
    state = policy.init(grid)
    states: Any = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), state)
    for frame in range(frames):
        keys = jnp.broadcast_to(of(frame), (2, 2, 2, 1, 4))
        states = policy.joined(states, Made(keys, keys), row(frame, [0]))
    return states


def two_scenes(frame):
    """Another direction from frame 6 on."""
    return jnp.eye(4)[0 if frame < 6 else 1] + 0.01 * frame


def test_a_sink_is_refreshed_where_the_scene_ends_and_not_before():
    policy = LevelBank(1, 6, 3)
    before = scene(policy, 6, two_scenes).frames[0, 0, 0, :3]
    np.testing.assert_array_equal(before, [0, 1, 2])
    after = np.asarray(scene(policy, 7, two_scenes).frames[0, 0, 0])
    assert sorted(after[:3])[-1] == 6 and len(set(after[:3]) & {0, 1, 2}) == 2
    later = np.asarray(scene(policy, 12, two_scenes).frames[0, 0, 0])
    assert (later[:3] >= 6).any() and (later[:3] < 6).any()  # on average they are alike again
    kept = scene(dataclasses.replace(policy, refresh=-1.0), 12, two_scenes).frames[0, 0, 0]
    np.testing.assert_array_equal(kept[:3], [0, 1, 2])


def test_samples_and_levels_refresh_their_sinks_by_themselves():
    policy = LevelBank(2, 4, 1)

    def of(frame):
        still = jnp.eye(4)[0]
        other = jnp.eye(4)[1 if frame == 3 else 0]
        return jnp.stack([still, other])[None, :, None, None]

    frames = np.asarray(scene(policy, 4, of).frames[0])
    assert frames[0, 0, 0] == 0 and frames[1, 0, 0] == 3
    assert (frames[:, 1] == -1).all()  # nothing was at level 1


def stacked(state):
    """The states of the only layer."""
    return jax.tree.map(lambda leaf: leaf[None], state)


def test_a_refreshed_frame_is_read_once():
    policy = LevelBank(1, 4, 1)
    state = policy.init(dataclasses.replace(GRID, frames=1))
    state = dataclasses.replace(state, frames=jnp.asarray([[[6, 6, 4, 5]], [[0, 6, 4, 5]]]))
    one = dataclasses.replace(GRID, frames=1)
    mask = policy.common(stacked(state), row(7, [0]), one)
    seen = np.asarray(mask.to_dense())[:, 0, 0]
    np.testing.assert_array_equal(seen, [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    # The second evaluation of a step: what the first one wrote of the frame is not its past.
    again = dataclasses.replace(state, frames=jnp.asarray([[[0, 7, 8, 6]]] * 2))
    seen = policy.common(stacked(again), row(7, [0]), one).to_dense()
    np.testing.assert_array_equal(np.asarray(seen)[0, 0, 0], [1, 0, 0, 1, 1])


def test_cosines_and_the_rule_of_the_sink():
    a = jnp.asarray([[1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(cosines(a, a), 1.0)
    np.testing.assert_allclose(cosines(a, -2 * a), -1.0)
    assert float(cosines(a, 0 * a)) == 0
    likeness = jnp.asarray([[0.9, -0.5, 0.1], [0.9, 0.1, 0.1]])
    may = jnp.asarray([True, True])
    np.testing.assert_array_equal(replaced(likeness, 0.2, may, 9), [1, 9])
    np.testing.assert_array_equal(replaced(likeness, 0.2, ~may, 9), [9, 9])


def test_what_is_forgotten_is_read_at_no_level():
    state = scene(LevelBank(1, 6, 3), 6, two_scenes).forget(3, 5)
    np.testing.assert_array_equal(state.frames[0, 0, 0], [0, 1, 2, -1, -1, 5])


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (LevelBank(0), "0 levels"),
        (LevelBank(4, 3, 3), "cache of 3 latent frames, 3 of them a sink"),
        (LevelBank(4, refresh=2.0), "refreshed below 2.0.*from -1 to 1"),
    ],
)
def test_what_no_bank_can_be_is_refused(policy, message):
    with pytest.raises(ConfigError, match=message):
        policy.init(GRID)
    assert isinstance(LevelBank().init(GRID), Bank)
