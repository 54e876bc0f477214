"""Rows that write a cache: once each, in order, and never read before."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.attention import CachedCausal, Dense, LevelBank
from jvdm.errors import ConfigError
from jvdm.samplers import (
    AutoregressiveMatrix,
    CachedMatrix,
    LagMatrix,
    SynchronousMatrix,
    TruncatedMatrix,
    WindowedMatrix,
    cached,
    cached_by_level,
    check_cache,
    cost,
    freeze,
    lag_matrix,
    linspace_levels,
    rewritten,
    stream_of,
    times,
    validate,
)

LEVELS = linspace_levels(3)
CASES = [(lag, block, frames) for lag in range(4) for block in (1, 2) for frames in (1, 4, 7)]


@pytest.mark.parametrize(("lag", "block", "frames"), CASES)
def test_every_frame_makes_its_steps_and_is_written_before_it_leaves(lag, block, frames):
    plain = lag_matrix(LEVELS, frames, lag, block)
    matrix = validate(cached(plain))
    index, start, write = (np.asarray(x) for x in (matrix.index, matrix.start, matrix.write))
    again = (index[1:] == index[:-1]).all(1)
    np.testing.assert_array_equal(index[np.append(True, ~again)], plain.index)
    np.testing.assert_array_equal(again, write.any(1))
    for row, first in enumerate(start):
        earlier = np.asarray(write[:row].any(0))
        assert earlier[:first].all()
        assert not (write[row] & (index[row] != 3)).any()
    check_cache(matrix, CachedCausal(frames=max(frames, 1)).slots)
    assert matrix.lookback == max(write[:row].any(0).sum() for row in range(len(start)))


@pytest.mark.parametrize("lag", [1, 2, 3, 5])
def test_at_every_level_a_frame_is_written_by_the_call_that_moves_it_on(lag):
    plain = lag_matrix(LEVELS, 6, lag)
    matrix = validate(cached_by_level(plain))
    index, start, write = (np.asarray(x) for x in (matrix.index, matrix.start, matrix.write))
    np.testing.assert_array_equal(index, plain.index)  # no row more
    np.testing.assert_array_equal(write, index[1:] != index[:-1])
    assert write.sum() == 6 * 3 and cost(matrix).calls == cost(plain).calls
    assert all(
        write[row, first : first + matrix.window].sum() == write[row].sum()
        for row, first in enumerate(start)
    )
    check_cache(matrix, LevelBank(3, 5, 2).slots, 3)


@pytest.mark.parametrize(
    ("matrix", "policy", "message"),
    [
        (
            cached_by_level(lag_matrix(LEVELS, 6, 1)),
            LevelBank(3, 4, 1),
            "row 5 .* latent frame 1 at level 0 .* for frame 5.*holds 4 frames a level",
        ),
        (
            cached_by_level(freeze(lag_matrix(LEVELS, 4, 1), [0])),
            LevelBank(3, 4, 1),
            "row 1 .* latent frame 0 at level 0 .*given passes no level",
        ),
        (
            cached_by_level(lag_matrix(LEVELS, 6, 1)),
            LevelBank(2, 6, 1),
            "every level, 3 steps, .* keeps 2 levels",
        ),
        (
            cached_by_level(lag_matrix(LEVELS, 6, 1)),
            CachedCausal(6),
            "every level, .* keeps 0 levels",
        ),
        (
            cached(lag_matrix(LEVELS, 6, 1)),
            LevelBank(3, 6, 1),
            "finished frames, or none, .* keeps 3 levels",
        ),
        (lag_matrix(LEVELS, 6, 1), LevelBank(3, 6, 1), "by_level True"),
    ],
    ids=["short", "given", "levels", "one cache", "clean rows", "no rows"],
)
def test_a_bank_that_lacks_what_is_read_is_refused_with_row_frame_and_level(
    matrix, policy, message
):
    with pytest.raises(ConfigError, match=message):
        check_cache(matrix, policy.slots, policy.banks)


@pytest.mark.parametrize(("lag", "block"), [(0, 1), (1, 2)])
def test_two_frames_that_pass_a_level_together_are_refused(lag, block):
    with pytest.raises(ConfigError, match="row 0 .* latent frames 0 and 1 at level 0"):
        cached_by_level(lag_matrix(LEVELS, 4, lag, block))


def test_a_stream_by_level_writes_in_every_row_from_the_first_on():
    rows = stream_of(CachedMatrix(LagMatrix(1), by_level=True), LEVELS, 9)
    assert (rows.buffer, rows.block, rows.context, rows.cycle.num_rows) == (3, 1, 0, 1)
    assert np.asarray(rows.cycle.write).all()
    np.testing.assert_array_equal(rows.ramp.write, [[True, False, False], [True, True, False]])
    for told in ({"cut": 8}, {"rewrite": 3}):
        with pytest.raises(ConfigError, match="cache for each level.*no jumps"):
            stream_of(CachedMatrix(LagMatrix(1), by_level=True, **told), LEVELS, 9)


def test_a_run_of_frames_one_by_one_feeds_each_once_more():
    matrix = cached(lag_matrix(LEVELS, 4, 3))
    assert cost(matrix)._asdict() == {
        "calls": 4 * 3 + 3,
        "frame_evaluations": 15,
        "first_output_call": 3,
    }
    np.testing.assert_array_equal(times(matrix)[3], [0, 1, 1, 1])


def test_given_frames_are_written_in_order_and_none_before_those_it_sees():
    matrix = validate(cached(freeze(lag_matrix(LEVELS, 4, 3), [0, 1, 3])))
    write = np.asarray(matrix.write)
    assert [int(write[:, frame].argmax()) for frame in range(2)] == [0, 1]
    assert write[:, 3].argmax() > write[:, 2].argmax() > 1


@pytest.mark.parametrize(
    ("policy", "lookback", "message"),
    [
        (Dense(), None, "row 4 .* reads latent frame 0 from a cache; .* holds 0 frames"),
        (CachedCausal(2), None, "row 12 .* reads latent frame 0 .* holds 2 frames.*frames 3"),
        (CachedCausal(3, sink=1), 3, "row 16 .* reads latent frame 1 .* holds 3 frames"),
    ],
)
def test_a_cache_that_is_too_short_is_refused_with_row_and_frame(policy, lookback, message):
    frames = 4 if lookback is None else 5
    matrix = cached(lag_matrix(LEVELS, frames, 3), lookback)
    check_cache(matrix, CachedCausal(frames).slots)
    with pytest.raises(ConfigError, match=message):
        check_cache(matrix, policy.slots)


@pytest.mark.parametrize(("lag", "block"), [(1, 1), (2, 1), (1, 2), (5, 2)])
def test_a_ring_as_long_as_the_lookback_serves_the_end_of_a_clip(lag, block):
    """Its last windows begin with finished frames, which are of those that are looked back at."""
    for frames in range(block, 9):
        whole = lag_matrix(LEVELS, frames, lag, block)
        check_cache(cached(whole, 2 * block), CachedCausal(2 * block, block=block).slots)
        if frames > 3 * block:
            with pytest.raises(ConfigError, match=f"holds {block} frames"):
                check_cache(cached(whole, 2 * block), CachedCausal(block, block=block).slots)


def test_frames_that_were_never_written_are_missed():
    matrix = cached(lag_matrix(LEVELS, 4, 3))
    broken = type(matrix)(
        matrix.levels,
        matrix.index,
        matrix.start,
        matrix.write.at[7].set(False),
        matrix.window,
        matrix.lookback,
    )
    with pytest.raises(ConfigError, match="row 8 .* reads latent frame 1"):
        check_cache(broken, CachedCausal(4).slots)


def test_what_makes_a_clip_makes_a_stream():
    of = functools.partial(stream_of, levels=jnp.linspace(1, 0, 9), window=9)
    sizes = {
        SynchronousMatrix(): (1, 8, 1, 1),
        LagMatrix(2): (2, 9, 1, 5),
        LagMatrix(2, block=3): (2, 12, 3, 0),
        LagMatrix(4, block=3): (4, 9, 3, 3),
        LagMatrix(4, block=3, first_block=3): (4, 9, 3, 3),
        AutoregressiveMatrix(2): (8, 8, 2, 6),
        WindowedMatrix(LagMatrix(2), 6): (2, 6, 1, 2),
        WindowedMatrix(LagMatrix(2)): (2, 4, 1, 0),
        WindowedMatrix(LagMatrix(2), 5, context=3): (2, 7, 1, 3),
        CachedMatrix(): (9, 1, 1, 0),
        CachedMatrix(LagMatrix(2)): (3, 4, 1, 0),
    }
    for rule, expected in sizes.items():
        rows = of(rule)
        found = (rows.cycle.num_rows, rows.buffer, rows.block, rows.context)
        if rule == SynchronousMatrix():
            assert found == (1, 9, 1, 1)
            continue
        assert found == expected, rule
        assert np.asarray(rows.cycle.write).sum() == (rows.block if found[0] % 2 else 0), rule
    with pytest.raises(ConfigError, match="a first block of 1 latent frames in a stream of 4"):
        of(AutoregressiveMatrix(4, first_block=1))
    with pytest.raises(ConfigError, match="TruncatedMatrix was to be streamed"):
        of(TruncatedMatrix(SynchronousMatrix(), 0.5))


@pytest.mark.parametrize(("frames", "window"), [(5, 1), (5, 2), (4, 4), (2, 3)])
def test_frames_that_are_rewritten_are_clean_and_written_once_in_order(frames, window):
    matrix = validate(rewritten(LEVELS, frames, window))
    assert not np.asarray(times(matrix)).any()
    write, start = np.asarray(matrix.write), np.asarray(matrix.start)
    np.testing.assert_array_equal(write.sum(0), 1)
    assert (np.diff(write.argmax(0)) >= 0).all() and write.any(1).all()
    for row, first in enumerate(start):
        assert first + matrix.window <= frames
        assert set(np.flatnonzero(write[row])) <= set(range(first, first + matrix.window))
