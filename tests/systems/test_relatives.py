"""Rows, windows and caches of SkyReels-V2, MAGI-1 and Rolling Forcing are those of the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvdm
from jvdm.attention import AttentionCall, CachedCausal, LevelBank, TokenGrid
from jvdm.pipeline import Request
from jvdm.pipeline.session import begin_session
from jvdm.recipes import load_system
from jvdm.samplers import Call, Stabilised, linspace_levels, stream_of
from tests.generate import nano


def rows_of(name, steps=None):
    """The sampling of a system, its rows, and the level indices of a cycle."""
    sampling = load_system(name, nano.SYSTEM).sampling
    levels = sampling.levels() if steps is None else linspace_levels(steps)
    rows = stream_of(sampling.matrix, levels, 9)
    return sampling, rows, np.asarray(rows.cycle.index)


def test_skyreels_moves_blocks_five_rows_apart_behind_a_finished_one():
    sampling, rows, index = rows_of("skyreels_v2", 16)
    assert (rows.block, rows.context, rows.buffer, rows.cycle.num_rows) == (2, 2, 10, 5)
    np.testing.assert_array_equal(index[0], [16, 16, 11, 11, 6, 6, 1, 1, 0, 0])
    np.testing.assert_array_equal(index[-1], [16, 16, 16, 16, 11, 11, 6, 6, 1, 1])
    assert sampling.context == Stabilised(0.02)


def test_magi_has_four_chunks_in_work_that_see_five_to_two():
    sampling, rows, index = rows_of("magi1")
    assert (rows.block, rows.context, rows.buffer) == (6, 0, 24)
    np.testing.assert_array_equal(index[0, ::6], [48, 32, 16, 0])
    np.testing.assert_array_equal(index[16, ::6], [64, 48, 32, 16])
    write = np.asarray(rows.cycle.write)
    assert not write[:16].any() and write[16].tolist() == [True] * 6 + [False] * 18
    policy, grid = sampling.policy, TokenGrid(24, 1, 1, head_dim=4)
    state = policy.init(grid)
    state = state.replace(frames=jnp.arange(6))  # chunk 0 is finished
    seen = allowed(policy, state, grid, 6)
    np.testing.assert_array_equal(seen.sum(1)[::6] / 6, [2, 3, 4, 5])


def allowed(policy, state, grid, frame):
    """Which of cached and own frames each frame of a window that begins at `frame` sees."""
    t = jnp.zeros((1, grid.frames))
    call = Call.at(t)
    row = call.row._replace(frame=jnp.int32(frame))
    tokens = jnp.zeros((1, grid.tokens, 1, 4))
    keys = jnp.zeros((1, policy.frames + grid.frames, 1, 4))
    mask, _ = policy.select(tokens, keys, keys, state, AttentionCall(jnp.int32(0), row, t, grid))
    return np.asarray(mask.to_dense())[0, 0]


def test_rolling_forcing_sees_its_window_both_ways_behind_an_anchor():
    sampling, rows, index = rows_of("rolling_forcing")
    assert (rows.block, rows.context, rows.buffer, rows.cycle.num_rows) == (3, 0, 15, 2)
    np.testing.assert_array_equal(
        index[:, ::3], [[4, 3, 2, 1, 0], [5, 4, 3, 2, 1], [5, 4, 3, 2, 1]]
    )
    levels = np.asarray(sampling.levels())
    np.testing.assert_allclose(levels, [1, 0.952, 0.882, 0.769, 0.556, 0], atol=5e-4)
    policy, grid = sampling.policy, TokenGrid(15, 1, 1, head_dim=4)
    held = jnp.array([0, 1, 2, 27, 28, 29])
    state = policy.init(grid).replace(frames=held, places=held)
    assert allowed(policy, state, grid, 30).all()
    causal = CachedCausal(6, sink=3, block=3, rotary="read")
    assert not allowed(causal, state, grid, 30).all()
    places = policy._places(state, Call.at(jnp.zeros((1, 15))).row._replace(frame=jnp.int32(30)))
    np.testing.assert_array_equal(places, np.arange(6))  # the anchor just before the latest block


@pytest.mark.slow
@pytest.mark.parametrize(("name", "latents"), [("skyreels_v2", 2), ("rolling_forcing", 3)])
def test_they_are_streams(weights, name, latents):
    pipe = jvdm.load(weights, system=name, progress=False)
    session = begin_session(pipe, Request(prompt="a red ball", seed=0, num_inference_steps=5))
    frames = []
    for _ in range(3):
        session, part = session.step()
        frames.append(part)
    assert [len(part) for part in frames[1:]] == [4 * latents] * 2
    assert np.ptp(np.concatenate(frames)) > 10
    held = session.job.held
    kept = sum(x.nbytes for x in jax.tree.leaves(session.run.state))
    assert kept == held.window + held.cache - 4 * session.job.rows.rewrite


def test_streamdiffusion_has_a_frame_at_each_level_with_a_cache_of_its_own(weights):
    sampling, rows, index = rows_of("streamdiffusion_v2")
    np.testing.assert_array_equal(index, [[3, 2, 1, 0], [4, 3, 2, 1]])
    np.testing.assert_allclose(sampling.levels(), [0.7, 0.5, 0.4, 0.2, 0])
    assert np.asarray(rows.cycle.write).all() and rows.cycle.num_rows == 1
    assert sampling.policy == LevelBank(4, 6, 3, 0.2)
    pipe = jvdm.load(weights, system="streamdiffusion_v2", progress=False)
    still = np.full((9, 16, 32, 3), 90, np.uint8)
    fast = still.copy()
    fast[5:] = 190
    first = []
    for clip in (still, fast):
        asked = Request(prompt="a red ball", seed=0, video=clip)
        job = pipe.prepare(asked)
        first.append(np.asarray(job.matrix.levels[0]))
        assert np.isfinite(np.asarray(pipe("a red ball", video=clip, seed=0).frames)).all()
    np.testing.assert_allclose(first[0], 0.7, rtol=1e-6)
    np.testing.assert_allclose(first[1], [0.7, 0.7, 0.9 * 0.6 + 0.1 * 0.7], rtol=1e-6)
    both = Request(prompt=["a red ball"] * 2, seed=0, video=np.stack([still, fast]))
    with pytest.raises(jvdm.ConfigError, match="2 videos, whose noise follows their motion"):
        pipe.prepare(both)
