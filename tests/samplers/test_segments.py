"""Segments of a grid, and runs in which the frames of every sample have levels of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ConfigError
from jvdm.samplers import DPMSolverPP2M, Euler, explicit_levels, rectified_flow, sample
from jvdm.samplers.levels import linspace_levels, shift_levels
from jvdm.samplers.matrices import lag_matrix, synchronous, times
from jvdm.samplers.segments import Segments, divided, follow
from jvdm.samplers.starts import SegmentStarts, StreamStarts
from tests.training.flow_toy import exact

GRID = np.asarray(shift_levels(linspace_levels(960), 8.0), np.float64)
EDGES = (1.0, 0.96, 8 / 9, 8 / 11, 0.0)
SEGMENTS = divided(GRID, EDGES, 4)
LEVELS = np.array([0.0, 0.001, 0.3, 0.5, 8 / 11, 0.75, 8 / 9, 0.9, 0.96, 0.97, 1.0], np.float32)


def brute_force(t, grid):
    lower = [level for level in grid if level < t - 1e-6]
    return max(lower, default=0.0)


def test_ends_and_next_points_of_every_level_are_those_of_a_search():
    t = jnp.asarray(LEVELS).reshape(1, -1)
    for found, grid in ((SEGMENTS.end, EDGES), (SEGMENTS.next, SEGMENTS.points)):
        wanted = [brute_force(float(level), grid) for level in LEVELS]
        np.testing.assert_allclose(found(t)[0], wanted, atol=1e-6)


def test_points_between_edges_are_levels_of_the_teacher_that_is_shifted_once():
    np.testing.assert_allclose(SEGMENTS.points, shift_levels(linspace_levels(16), 8.0), atol=1e-5)
    assert SEGMENTS.edges == pytest.approx(EDGES, abs=1e-7)
    uneven = divided(GRID, (1.0, 0.5, 0.0), 3)
    assert uneven.edges == (1.0, 0.5, 0.0) and len(uneven.points) == 7
    assert list(uneven.points) == sorted(uneven.points, reverse=True)


def test_the_way_of_a_frame_ends_with_its_segment():
    t = jnp.asarray(LEVELS).reshape(1, -1)
    way = np.asarray(SEGMENTS.way(t, 4, SEGMENTS.end(t)))[:, 0]
    np.testing.assert_array_equal(way[0], LEVELS)
    np.testing.assert_array_equal(way[-1], SEGMENTS.end(t)[0])
    whole = np.isclose(LEVELS[:, None], EDGES[:-1]).any(1)
    moves = (np.diff(way, axis=0) != 0).sum(0)
    assert (moves[whole] == 4).all() and (moves[~whole] < 5).all() and moves[0] == 0
    assert (np.diff(way, axis=0) <= 0).all()
    stands = np.asarray(SEGMENTS.way(t, 4, SEGMENTS.end(t).at[0, 2].set(t[0, 2])))[:, 0]
    assert (stands[:, 2] == LEVELS[2]).all() and (np.delete(stands - way, 2, 1) == 0).all()


def test_the_length_of_a_segment_is_that_of_all_levels_in_it():
    t = jnp.asarray(LEVELS).reshape(1, -1)
    wanted = np.array([8 / 11, 8 / 9 - 8 / 11, 0.96 - 8 / 9, 0.04])
    found = np.asarray(SEGMENTS.width(t))[0]
    np.testing.assert_allclose(found[1:], wanted[[0, 0, 0, 0, 1, 1, 2, 2, 3, 3]], atol=1e-6)
    assert found[0] > 0  # a clean frame's error is divided by it


@pytest.mark.parametrize(
    ("edges", "micro"), [((1.0, 0.5, 0.5, 0.0), 4), ((1.0, 0.0), 0), ((2.0, 0.0), 4), ((), 4)]
)
def test_segments_that_are_none_are_refused(edges, micro):
    with pytest.raises(ConfigError):
        divided(GRID, edges, micro)
    with pytest.raises(ConfigError):
        Segments((1.0, 0.5, 0.25, 0.0), 2)  # an unfinished segment


@pytest.mark.parametrize("solver", [Euler(), DPMSolverPP2M()], ids=lambda s: type(s).__name__)
def test_samples_with_levels_of_their_own_are_made_as_if_each_were_alone(solver):
    grids = [(1.0, 0.8, 0.6, 0.4), (0.9, 0.5, 0.2, 0.1), (0.7, 0.6, 0.3, 0.0)]
    x, key = jax.random.normal(jax.random.key(0), (3, 4, 1, 1, 2)), jax.random.key(1)
    rows = jnp.broadcast_to(jnp.asarray(grids).T[:, :, None], (4, 3, 4))
    together = follow(exact, solver, rectified_flow(), rows, x, key)
    for one, grid in enumerate(grids):
        matrix = synchronous(jnp.asarray(grid), 4)
        alone = sample(exact, solver, rectified_flow(), matrix, x[one : one + 1], key).x
        np.testing.assert_allclose(together[one], alone[0], atol=2e-5)


def test_frames_that_stand_keep_their_bits_and_are_shown_at_their_own_levels():
    seen = []

    def watched(x, call, carry):
        seen.append((x, call.t, call.t_next))
        return exact(x, call, carry)

    x = jax.random.normal(jax.random.key(0), (2, 4, 1, 1, 2))
    rows = jnp.asarray([[[0.0, 1.0, 0.6, 1.0]] * 2, [[0.0, 0.5, 0.6, 1.0]] * 2])
    with jax.disable_jit():
        after = follow(watched, Euler(), rectified_flow(), rows, x, jax.random.key(1))
    for frame, stands in enumerate((True, False, True, True)):
        assert bool((after[:, frame] == x[:, frame]).all()) == stands
    shown, t, t_next = seen[0]
    np.testing.assert_array_equal(shown, x)
    np.testing.assert_array_equal(t, rows[0])
    np.testing.assert_array_equal(t_next, rows[1])


def test_starts_are_equally_frequent_and_equal_within_a_clip():
    drawn = SegmentStarts(EDGES[:-1])(jax.random.key(0), 4000, 3)
    t = np.asarray(drawn.t)
    assert (t == t[:, :1]).all() and np.asarray(drawn.loss_mask).all()
    counts = np.array([np.isclose(t[:, 0], edge).sum() for edge in EDGES[:-1]])
    assert counts.sum() == 4000 and (abs(counts - 1000) < 110).all()  # four standard deviations


def test_rows_of_a_stream_are_those_of_its_matrix():
    edges, frames = (1.0, 0.75, 0.5, 0.25, 0.0), 7
    matrix = lag_matrix(explicit_levels(edges), frames, lag=1, block=2)
    rows = np.asarray(times(matrix))
    moves = (rows[:-1] != rows[1:]).astype(int)
    drawn = StreamStarts(edges[:-1], chunk=2, full=0.0)(jax.random.key(0), 2000, frames)
    t, mask = np.asarray(drawn.t), np.asarray(drawn.loss_mask)
    which = (t[:, None] == rows[None, :-1]).all(2)
    assert (which.sum(1) == 1).all()
    np.testing.assert_array_equal(mask, moves[which.argmax(1)])
    counts = which.sum(0)
    assert len(counts) == 7 and (abs(counts - 2000 / 7) < 63).all()  # four standard deviations
    full = StreamStarts(edges[:-1], chunk=2, full=1.0)(jax.random.key(0), 100, frames)
    assert np.asarray(full.loss_mask).all()  # four chunks, four segments
    assert (np.asarray(full.t)[:, ::2] == [0.25, 0.5, 0.75, 1.0]).all()


@pytest.mark.parametrize("lag", [2, 4])
def test_rows_of_chunks_further_apart_are_those_of_their_matrix(lag):
    edges, frames = (1.0, 0.75, 0.5, 0.25, 0.0), 6
    matrix = lag_matrix(explicit_levels(edges), frames, lag=lag, block=2)
    rows = np.asarray(times(matrix))
    moves = (rows[:-1] != rows[1:]).astype(int)
    for full in (0.0, 1.0):
        drawn = StreamStarts(edges[:-1], chunk=2, full=full, lag=lag)(
            jax.random.key(0), 2000, frames
        )
        t, mask = np.asarray(drawn.t), np.asarray(drawn.loss_mask)
        which = (t[:, None] == rows[None, :-1]).all(2)
        assert (which.sum(1) == 1).all() and set(which.argmax(1)) == (
            set(range(len(rows) - 1)) if full == 0 else set(range(3, 2 * lag + 1))
        )
        np.testing.assert_array_equal(mask, moves[which.argmax(1)])
    assert lag == 2 or (np.asarray(drawn.loss_mask).sum(1) == 2).all()


def test_all_chunks_of_a_stream_are_at_one_place_of_their_segments():
    levels = (1.0, 0.9, 0.6, 0.5, 0.4, 0.2)
    drawn = StreamStarts(levels, chunk=1, each=2, full=1.0)(jax.random.key(0), 200, 3)
    found = {tuple(np.round(row, 4).tolist()) for row in np.asarray(drawn.t, np.float64)}
    assert found == {(0.4, 0.6, 1.0), (0.2, 0.5, 0.9)}
