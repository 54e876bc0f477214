import dataclasses

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ConfigError
from jvdm.samplers import (
    cost,
    edm,
    freeze,
    from_index,
    lag_matrix,
    linspace_levels,
    pad_rows,
    plot,
    rectified_flow,
    shift_levels,
    synchronous,
    times,
    truncate,
    validate,
    windowed,
)
from jvdm.samplers.matrices import unseen

LEVELS = linspace_levels(4)
wave = st.tuples(
    st.sampled_from([1, 2, 4]),  # steps
    st.sampled_from([1, 2, 5, 6]),  # frames
    st.integers(0, 5),  # lag
    st.sampled_from([1, 2, 3]),  # block
)


def one_frame_after_the_other(steps, frames, lag, block):
    """The lag matrix by waiting and counting, as its inventors generate it."""
    done, waited = [0] * frames, [0] * frames
    rows = [list(done)]
    while any(count < steps for count in done):
        for frame in range(frames):
            if waited[frame] < lag * (frame // block):
                waited[frame] += 1
            elif done[frame] < steps:
                done[frame] += 1
        rows.append(list(done))
    return rows


@hypothesis.given(wave)
def test_closed_form_equals_waiting_and_counting(arguments):
    steps, frames, lag, block = arguments
    matrix = lag_matrix(linspace_levels(steps), frames, lag, block)
    np.testing.assert_array_equal(matrix.index, one_frame_after_the_other(*arguments))
    assert validate(matrix) is matrix
    assert (matrix.num_rows, matrix.num_steps, matrix.latent_frames) == (
        steps + lag * ((frames - 1) // block),
        steps,
        frames,
    )


def test_synchronous_and_autoregressive_are_lag_matrices():
    sync = synchronous(LEVELS, 3)
    assert (times(sync) == LEVELS[:, None]).all()
    autoregressive = times(lag_matrix(LEVELS, 3, lag=4))
    moving = np.asarray(autoregressive[1:] != autoregressive[:-1])
    np.testing.assert_array_equal(moving.sum(axis=1), 1)
    np.testing.assert_array_equal(moving.argmax(axis=1), np.repeat([0, 1, 2], 4))


@pytest.mark.parametrize("arguments", [dict(lag=-1), dict(block=0), dict(latent_frames=0)])
def test_impossible_waves_are_refused(arguments):
    with pytest.raises(ConfigError, match="lag 0 or more"):
        lag_matrix(LEVELS, **{"latent_frames": 3, **arguments})


def test_frozen_columns_are_clean_and_the_others_unchanged():
    matrix = lag_matrix(LEVELS, 5, lag=1)
    frozen = validate(freeze(matrix, (0, -1)))
    np.testing.assert_array_equal(times(frozen)[:, [0, 4]], 0)
    np.testing.assert_array_equal(frozen.index[:, 1:4], matrix.index[:, 1:4])
    np.testing.assert_array_equal(freeze(matrix, ()).index, matrix.index)


def test_frozen_columns_may_be_told_another_level():
    frozen = validate(freeze(synchronous(LEVELS, 3), (1,), level=3))
    np.testing.assert_array_equal(times(frozen)[:, 1], 0.25)


def test_freezing_what_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="frame 3 .* use frames -3 to 2"):
        freeze(synchronous(LEVELS, 3), (0, 3))
    with pytest.raises(ConfigError, match="level index 5 .* 0 .noise. to 4"):
        freeze(synchronous(LEVELS, 3), (0,), level=5)


def test_truncation_starts_later_in_the_same_shape():
    matrix = truncate(lag_matrix(LEVELS, 2, lag=1), 2)
    np.testing.assert_array_equal(times(matrix)[0], 0.5)
    np.testing.assert_array_equal(times(matrix)[-1], 0)
    assert matrix.num_rows == 5
    assert cost(matrix).calls == 3
    with pytest.raises(ConfigError, match="level index 9"):
        truncate(matrix, 9)


def test_frames_that_are_kept_at_a_level_keep_it_when_the_others_start_later():
    matrix = truncate(freeze(synchronous(LEVELS, 3), (1,), level=1), 2)
    np.testing.assert_array_equal(times(matrix)[0], [0.5, 0.75, 0.5])
    np.testing.assert_array_equal(times(matrix)[:, 1], 0.75)


def test_the_process_bounds_the_levels():
    matrix = synchronous(jnp.array([1.5, 0.5, 0.0]), 2)
    assert validate(matrix) is matrix and validate(matrix, edm()) is matrix
    with pytest.raises(ConfigError, match="is 1.5; .* ends at 1, and it is level 0 of 2"):
        validate(matrix, rectified_flow())


def test_frames_that_no_window_shows_are_found():
    one_by_one = lag_matrix(LEVELS, 4, lag=4)
    assert unseen(windowed(freeze(one_by_one, (0, 2))), (0, 2)) == [0, 2]
    assert unseen(windowed(freeze(one_by_one, (0, 2)), context=1), (0, 2)) == []
    assert unseen(freeze(synchronous(LEVELS, 2), (0, 1)), (0, 1)) == []  # nothing is called


def test_more_rows_than_anyone_could_run_are_refused_before_they_are_made():
    with pytest.raises(ConfigError, match="300,000,004 rows of 4 .* 2,500,000 rows of so"):
        lag_matrix(LEVELS, 4, lag=10**8)
    with pytest.raises(ConfigError, match="4 rows of 10,000,000,000 latent frames"):
        lag_matrix(LEVELS, 10**10)


def test_padding_repeats_the_last_row():
    matrix = lag_matrix(LEVELS, 3, lag=1)
    padded = validate(pad_rows(matrix, 10))
    np.testing.assert_array_equal(times(padded)[:7], times(matrix))
    assert (times(padded)[7:] == 0).all() and padded.num_rows == 10
    assert cost(padded) == cost(matrix)
    written = dataclasses.replace(matrix, write=matrix.write.at[-1, 2].set(True))
    assert int(validate(pad_rows(written, 10)).write.sum()) == 1
    with pytest.raises(ConfigError, match="3 rows .* 6"):
        pad_rows(matrix, 3)


def test_every_frame_may_have_its_own_grid():
    grids = jnp.stack([shift_levels(LEVELS, s) for s in (1.0, 2.0, 3.0)], axis=1)
    matrix = validate(from_index(grids, lag_matrix(LEVELS, 3, lag=1).index))
    for frame in range(3):
        expected = grids[:, frame][matrix.index[:, frame]]
        np.testing.assert_array_equal(times(matrix)[:, frame], expected)


@hypothesis.settings(max_examples=20)
@hypothesis.given(wave, st.integers(0, 3), st.sampled_from([(), (0,), (0, -1)]))
def test_windows_hold_the_frames_in_work_and_their_context(arguments, context, frozen):
    steps, frames, lag, block = arguments
    full = freeze(lag_matrix(linspace_levels(steps), frames, lag, block), frozen)
    matrix = validate(windowed(full, context))
    np.testing.assert_array_equal(matrix.index, full.index)
    moving = np.asarray(full.index[1:] != full.index[:-1])
    span = 1
    for row in range(matrix.num_rows):
        if moving[row].any():
            first, last = moving[row].argmax(), frames - 1 - moving[row][::-1].argmax()
            start = int(matrix.start[row])
            assert start <= max(first - context, 0) and last < start + matrix.window
            span = max(span, last - first + 1)
    assert matrix.window == min(span + context, frames)


def test_autoregression_feeds_one_block_at_a_time():
    matrix = windowed(lag_matrix(LEVELS, 6, lag=4, block=2))
    assert matrix.window == 2
    np.testing.assert_array_equal(matrix.start, np.repeat([0, 2, 4], 4))


def test_costs_of_the_specification():
    # specs/temporal.md 0.2: F = 32, S = 50.
    levels = linspace_levels(50)
    assert cost(synchronous(levels, 32)) == (50, 1600, 50)
    assert cost(lag_matrix(levels, 32, lag=5)) == (205, 6560, 50)
    autoregressive = lag_matrix(levels, 32, lag=50, block=4)
    assert cost(autoregressive) == (400, 12800, 50)
    assert cost(windowed(autoregressive)) == (400, 1600, 50)


def test_cost_when_nothing_moves():
    assert cost(freeze(synchronous(LEVELS, 2), (0, 1))) == (0, 0, 0)


def test_cost_counts_calls_that_only_write():
    matrix = pad_rows(synchronous(LEVELS, 2), 5)
    matrix = dataclasses.replace(matrix, write=matrix.write.at[4].set(True))
    assert cost(validate(matrix)) == (5, 10, 4)


def changed(**fields):
    return dataclasses.replace(lag_matrix(LEVELS, 3, lag=1), **fields)


GOOD = lag_matrix(LEVELS, 3, lag=1)
PLANTED = {
    "backwards": (dict(index=GOOD.index.at[3, 1].set(0)), "row 2, frame 1.*noisier"),
    "too large": (dict(index=GOOD.index.at[6, 2].set(5)), "row 6, frame 2.*outside 0 to 4"),
    "negative": (dict(index=GOOD.index.at[0, 1].set(-1)), "row 0, frame 1.*outside 0 to 4"),
    "unfinished": (dict(index=GOOD.index.at[:, 2].min(3)), "row 6, frame 2.*not end clean"),
    "outside": (dict(window=2), "row 2, frame 2.*outside of its window.*window of 2"),
    "window": (dict(window=4), "the window has 4 frames.*matrix has 3"),
    "written twice": (
        dict(write=GOOD.write.at[4:, 0].set(True)),
        "row 5, frame 0.*second time",
    ),
    "written outside": (
        dict(window=2, start=GOOD.start.at[2:].set(1), write=GOOD.write.at[5, 0].set(True)),
        "row 2, frame 0.*outside of its window|row 5, frame 0.*written.*outside",
    ),
    "grid up": (dict(levels=LEVELS[::-1]), "do not descend: level 1 of 4 is 0.25"),
    "grid nan": (dict(levels=LEVELS.at[2].set(jnp.nan)), "do not descend: level 2 of 4 is nan"),
    "grid end": (dict(levels=LEVELS + 0.125), "last noise level is 0.125; it is level 4 of 4,"),
    "grid of a frame": (
        dict(levels=jnp.stack([LEVELS] * 3, 1).at[3, 1].set(0.9)),
        "do not descend: level 3 of 4 of frame 1 is 0.9",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_validation_names_the_row_and_the_frame(name):
    fields, message = PLANTED[name]
    with pytest.raises(ConfigError, match=message):
        validate(changed(**fields))


def test_a_matrix_is_data_for_jax():
    traced_times = jax.jit(chex.assert_max_traces(times, n=1))
    for lag in (0, 1):
        matrix = pad_rows(lag_matrix(LEVELS, 3, lag=lag), 6)
        np.testing.assert_array_equal(traced_times(matrix), times(matrix))
    shapes = jax.tree.map(jnp.shape, GOOD)
    assert shapes.index == (7, 3) and shapes.window == 3
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(GOOD)]
    assert paths == [".levels", ".index", ".start", ".write"]


def test_picture_shows_rows_frames_frozen_columns_and_windows():
    matrix = windowed(freeze(lag_matrix(LEVELS, 4, lag=4), (3,)))
    image = plot(matrix, cell=4)
    assert image.dtype == np.uint8 and image.shape == (4 * 17, 4 * 4, 3)
    cells = image[1::4, 1::4].astype(int)
    brightness = cells.sum(axis=-1)
    assert (np.diff(brightness[:5, 0]) > 0).all()  # denoised in its window
    assert brightness[0, 1] < brightness[4, 1]  # dimmed until its turn
    frozen, finished = cells[0, 3], cells[16, 0]
    assert frozen[1] > frozen[0] and finished[1] < finished[0]  # green against yellow
