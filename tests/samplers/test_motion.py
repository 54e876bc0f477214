"""Levels that follow the motion of a video: the formula, frame by frame, as data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm import samplers
from jvdm.errors import ConfigError
from jvdm.samplers import MotionLevels, motion_of

ENDS = (1, 5, 9)
RULE = MotionLevels((0.7, 0.5, 0.2))


def film(*steps):
    """A film of grey pictures whose values change by these steps, of 255."""
    values = np.cumsum([40, *steps])
    return np.broadcast_to(values[:, None, None, None], (len(values), 4, 6, 3)).astype(np.uint8)


def test_a_latent_frame_moves_as_much_as_the_fastest_of_its_frames():
    moved = motion_of(film(0, 0, 51, 0, 0, 10, 10, 10), ENDS)
    np.testing.assert_allclose(moved, [0, 51 / 127.5, 10 / 127.5], rtol=1e-5)
    np.testing.assert_array_equal(motion_of(film(*[0] * 8), ENDS), 0)
    one = film(0, 0, 0, 0, 0, 0, 0, 0).copy()
    one[5:, :2] += 51  # half of the picture: the root of the mean square
    np.testing.assert_allclose(motion_of(one, ENDS), [0, 0, 51 / 127.5 / np.sqrt(2)], rtol=1e-5)


def test_fast_frames_start_with_less_noise_and_remember_the_one_before():
    grids = np.asarray(RULE.of_motion(np.array([0.0, 0.1, 0.2, 5.0, 0.0])))
    starts, before = [], 0.7
    for less in (0.0, 0.05, 0.1, 0.1, 0.0):
        before = 0.9 * (0.7 - less) + 0.1 * before
        starts.append(before)
    np.testing.assert_allclose(grids[0], starts, rtol=1e-6)
    np.testing.assert_allclose(grids[1:], np.repeat([[0.5], [0.2], [0.0]], 5, 1), rtol=1e-6)
    still = np.asarray(RULE.of_motion(np.zeros(5)))
    np.testing.assert_allclose(still, np.repeat(np.asarray(RULE())[:, None], 5, 1), rtol=1e-6)


def test_where_frames_start_is_data_of_one_program():
    """Levels of every frame are an array: another video compiles nothing."""
    rows = samplers.cached_by_level(samplers.lag_matrix(RULE(), 3, 1))
    solver, process = samplers.Euler(), samplers.rectified_flow()
    seen = []

    def denoise(x, call, carry):
        return samplers.Denoised(0 * x, x), carry

    @jax.jit
    def run(levels, x):
        seen.append(levels.shape)
        matrix = samplers.TimestepMatrix(
            levels, rows.index, rows.start, rows.write, rows.window, rows.lookback
        )
        return samplers.sample(denoise, solver, process, matrix, x, jax.random.key(0)).x

    x = jnp.ones((1, 3, 1, 1, 1))
    for moved in ([0.0, 0.0, 0.0], [0.0, 0.3, 0.1]):
        grids = RULE.of_motion(np.array(moved))
        samplers.validate(
            samplers.TimestepMatrix(grids, rows.index, rows.start, rows.write, rows.window)
        )
        made = np.asarray(run(grids, x))[0, :, 0, 0, 0]
        # Euler towards x0 = 0 along a velocity of x: every step multiplies by 1 + t_next - t.
        levels = np.asarray(grids)
        expected = np.prod(1 + np.diff(levels, axis=0), axis=0)
        np.testing.assert_allclose(made, expected, rtol=1e-5)
    assert len(seen) == 1


@pytest.mark.parametrize(
    "rule",
    [
        MotionLevels((0.7, 0.65, 0.2)),
        MotionLevels((0.7, 0.5), less=-0.1),
        MotionLevels((0.7, 0.5), full=0.0),
        MotionLevels((0.7, 0.5), keep=1.0),
    ],
)
def test_numbers_that_would_turn_the_levels_round_are_refused(rule):
    with pytest.raises(ConfigError, match="second level is .* below the first"):
        rule()
