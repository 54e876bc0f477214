"""The matrices that published systems generate with counters are lag matrices and frozen columns.

The generators are written down from their code, in NumPy: SkyReels-V2 (`generate_timestep_matrix`,
arXiv:2504.13074) and Diffusion Forcing (`_generate_scheduling_matrix`, arXiv:2407.01392).
"""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jvdm.samplers import freeze, lag_matrix, linspace_levels, synchronous, windowed

waves = st.tuples(
    st.integers(1, 6),  # steps
    st.integers(1, 6),  # blocks
    st.integers(0, 8),  # lag
    st.integers(1, 3),  # frames per block
)


def skyreels(steps, blocks, lag, block, ready=0):
    """Returns which level each frame is told in each call, and which frames move in it."""
    counters = np.zeros(blocks, int)
    counters[:ready] = steps + 1
    told, moved = [], []
    while (counters < steps).any():
        new = np.zeros(blocks, int)
        for place in range(blocks):
            first = place == 0 or counters[place - 1] >= steps
            new[place] = counters[place] + 1 if first else new[place - 1] - lag
        new = new.clip(0, steps + 1)
        told.append((new - 1).clip(0))  # a counter begins at 1, and 0 is noise like it
        moved.append((new != counters) & (new != steps + 1))
        counters = new
    return (np.repeat(np.reshape(part, (-1, blocks)), block, axis=1) for part in (told, moved))


def calls_of(matrix):
    """Returns the same of a matrix of ours, without the rows that call nothing."""
    index = np.asarray(matrix.index)
    moves = index[1:] != index[:-1]
    called = moves.any(1)
    return index[:-1][called], moves[called]


@hypothesis.settings(max_examples=12)  # every shape compiles what freezes its columns
@hypothesis.given(waves, st.integers(0, 5))
def test_skyreels(wave, ready):
    """A lag beyond all steps waits no longer there than for the block before to be finished."""
    steps, blocks, lag, block = wave
    ready = min(ready, blocks - 1)
    told, moved = skyreels(steps, blocks, lag, block, ready)
    matrix = lag_matrix(linspace_levels(steps), blocks * block, min(lag, steps), block)
    ours, moves = calls_of(freeze(matrix, range(ready * block)))
    np.testing.assert_array_equal(ours, told)
    np.testing.assert_array_equal(moves, moved)


@hypothesis.given(waves, st.integers(1, 6))
def test_skyreels_takes_the_lags_whose_wave_fits_the_length_of_training(wave, trained):
    steps, blocks, lag, block = wave
    lag = min(lag, steps)
    hypothesis.assume(trained < blocks)
    matrix = windowed(lag_matrix(linspace_levels(steps), blocks * block, lag, block))
    assert (lag >= steps / trained) == (matrix.window <= trained * block)


def diffusion_forcing(kind, steps, horizon, scale):
    """Returns how many steps are left for each frame in each row."""
    if kind == "full_sequence":
        return np.arange(steps, -1, -1)[:, None].repeat(horizon, axis=1)
    scale = steps if kind == "autoregressive" else scale
    rows = np.arange(steps + int((horizon - 1) * scale) + 1)
    waits = np.array([int(frame * scale) for frame in range(horizon)])
    return np.clip(steps + waits[None] - rows[:, None], 0, steps)


@pytest.mark.parametrize("scale", [0, 1, 2, 4, 1 / 2, 1 / 4])
def test_pyramids_of_diffusion_forcing(scale):
    """A scale below 1 lets so many frames go together."""
    lag, block = (int(scale), 1) if scale >= 1 or scale == 0 else (1, round(1 / scale))
    for steps, frames in ((1, 1), (4, 5), (6, 9), (3, 8)):
        ours = lag_matrix(linspace_levels(steps), frames, lag, block)
        left = diffusion_forcing("pyramid", steps, frames, scale)
        np.testing.assert_array_equal(steps - np.asarray(ours.index), left)


@pytest.mark.parametrize("frames", [1, 4, 7])
def test_sequences_and_autoregression_of_diffusion_forcing(frames):
    levels = linspace_levels(4)
    for kind, ours in (
        ("full_sequence", synchronous(levels, frames)),
        ("autoregressive", lag_matrix(levels, frames, 4)),
    ):
        left = diffusion_forcing(kind, 4, frames, None)
        np.testing.assert_array_equal(4 - np.asarray(ours.index), left)
