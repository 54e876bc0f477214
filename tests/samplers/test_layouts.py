import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ConfigError
from jvdm.samplers import (
    Euler,
    UniPC,
    freeze,
    from_index,
    from_times,
    joined,
    lag_matrix,
    linspace_levels,
    rectified_flow,
    sample,
    shift_levels,
    synchronous,
    times,
    trapezoid_matrix,
    validate,
    windowed,
)
from tests.samplers.problems import mixture_denoiser, noise_like

LEVELS, FLOW, KEY = linspace_levels(4), rectified_flow(), jax.random.key(2)


@hypothesis.given(
    st.integers(1, 4), st.integers(0, 5), st.integers(1, 4), st.integers(0, 3), st.integers(1, 6)
)
def test_blocks_of_a_layout_start_one_after_the_other(first, lag, block, prefix, rest):
    """By hand: a prefix, one block of its own size, then blocks of equal size."""
    frames = prefix + rest
    sizes = [first] + [block] * frames
    number = np.repeat(np.arange(len(sizes)), sizes)[:rest]
    matrix = validate(lag_matrix(LEVELS, frames, lag, block, first_block=first, prefix=prefix))
    index = np.asarray(matrix.index)
    assert (index[:, :prefix] == 4).all()
    starts = (index[1:, prefix:] > 0).argmax(axis=0)
    np.testing.assert_array_equal(starts, lag * number)
    assert matrix.num_rows == 4 + lag * number[-1]


def test_layouts_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="first block 0, 3 latent frames"):
        lag_matrix(LEVELS, 3, 1, first_block=0)
    with pytest.raises(ConfigError, match="a prefix of 3 of 3 latent frames.*use 0 to 2"):
        lag_matrix(LEVELS, 3, 1, prefix=3)
    with pytest.raises(ConfigError, match="lag -1, block 1, 3 latent frames from both ends"):
        trapezoid_matrix(LEVELS, 3, -1)


@pytest.mark.parametrize("scale", [0, 1, 3])
@pytest.mark.parametrize("frames", [1, 2, 5, 8])
def test_both_ends_are_the_published_trapezoid_but_for_its_last_frame(frames, scale):
    """Their loop writes the column `-0`, which is the first, so the last waits with the second."""
    steps = 4
    ours = trapezoid_matrix(LEVELS, frames, scale)
    left = np.full((int((frames + 1) // 2 * scale) + steps + 1, frames), -1)
    for row in range(len(left)):
        for wait in range((frames + 1) // 2):
            left[row, [wait, frames - 1 - wait]] = np.clip(steps + wait * scale - row, 0, steps)
    rows = ours.num_rows + 1
    np.testing.assert_array_equal(steps - np.asarray(ours.index), left[:rows])
    assert (left[rows - 1 :] == 0).all()
    np.testing.assert_array_equal(ours.index, ours.index[:, ::-1])
    assert validate(ours) is ours


def test_times_are_taken_bit_by_bit_and_run_as_the_matrix_that_they_are_of():
    levels = shift_levels(LEVELS, 3.0)
    matrix = freeze(lag_matrix(levels, 3, lag=2), [0])
    again = validate(from_times(times(matrix)))
    np.testing.assert_array_equal(times(again), times(matrix))
    x = noise_like((1, 3, 8))
    run = jax.jit(lambda matrix: sample(mixture_denoiser(FLOW), UniPC(), FLOW, matrix, x, KEY).x)
    np.testing.assert_array_equal(run(again), run(matrix))


@pytest.mark.parametrize(
    "levels",
    [np.ones((1, 3), np.float32), np.ones((2, 0), np.float32), np.full((2, 2), np.nan, np.float32)],
    ids=["one row", "no frames", "no numbers"],
)
def test_times_that_are_none_are_refused(levels):
    with pytest.raises(ConfigError, match="noise levels of . rows of . latent frames"):
        from_times(levels)


def test_times_that_rise_are_refused_with_row_and_frame():
    rising = np.array([[1, 1], [0.5, 1], [0, 0.5], [0, 0.75], [0, 0]], np.float32)
    with pytest.raises(ConfigError, match="row 2, frame 1 .*noisier"):
        validate(from_times(rising))


def test_stages_are_one_run_that_could_have_been_two():
    """Few large steps together, then small ones as a wave in windows."""
    grid = jnp.array([1.0, 0.8, 0.5, 0.0])
    large = from_index(grid, np.array([[0] * 4, [1] * 4, [2] * 4]))
    small = windowed(lag_matrix(jnp.array([0.5, 0.25, 0.1, 0.0]), 4, lag=3), context=1)
    both = validate(joined(large, small))
    assert (both.window, both.num_rows) == (4, large.num_rows + small.num_rows)
    np.testing.assert_array_equal(times(both), [*times(large), *times(small)[1:]])
    x = noise_like((2, 4, 8))
    denoise = mixture_denoiser(FLOW)
    at_once = sample(denoise, Euler(), FLOW, both, x, KEY).x
    half = sample(denoise, Euler(), FLOW, large, x, KEY).x
    np.testing.assert_allclose(at_once, sample(denoise, Euler(), FLOW, small, half, KEY).x, 1e-6)


def test_windows_and_writes_of_stages_stand_in_their_rows():
    wave = windowed(lag_matrix(LEVELS, 5, lag=4))
    wave = wave.__class__(
        wave.levels, wave.index, wave.start, wave.write.at[7, 1].set(True), wave.window, 2
    )
    first = windowed(from_index(jnp.array([1.0, 0.0]), np.zeros((3, 5), np.int32)))
    both = validate(joined(first, wave))
    assert (both.window, both.lookback) == (1, 2)
    np.testing.assert_array_equal(both.start[2:], wave.start)
    assert np.argwhere(both.write).tolist() == [[9, 1]]


def test_stages_that_do_not_meet_are_refused_with_row_and_frame():
    late = from_times(np.array([[0.5, 0.5], [0.0, 0.0]], np.float32))
    early = from_times(np.array([[1.0, 1.0], [0.5, 0.75]], np.float32))
    with pytest.raises(ConfigError, match="row 1, frame 1 .*at level 0.75.*begins at 0.5"):
        joined(early, late)
    with pytest.raises(ConfigError, match="stages of 2 and 3 latent frames"):
        joined(early, synchronous(LEVELS, 3))
