"""Which frames of a run stay as they are given, and which are only where it starts."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ConfigError
from jvdm.rows import keep_given, row_from, starts_noisy
from jvdm.samplers import (
    diffusers_levels,
    edm,
    explicit_levels,
    freeze,
    from_index,
    karras_levels,
    linspace_levels,
    rectified_flow,
    synchronous,
    times,
    truncate,
    vp_scaled_linear,
)

NOISY, MATRIX = np.ones(4, bool), synchronous(linspace_levels(4), 4)


def given(*columns, edited=False):
    return SimpleNamespace(columns=columns, edited=edited)


def test_given_frames_are_clean_in_every_row_and_the_others_as_they_were():
    kept = keep_given(MATRIX, NOISY, [given(0), given(2)])
    np.testing.assert_array_equal(times(kept)[:, [0, 2]], 0)
    np.testing.assert_array_equal(kept.index[:, [1, 3]], MATRIX.index[:, [1, 3]])


def test_frames_that_are_edited_are_no_more_than_starts():
    later = truncate(MATRIX, 2)
    edited = given(0, 1, 2, 3, edited=True)
    assert keep_given(later, ~NOISY, [edited]) is later
    both = keep_given(later, ~NOISY, [edited, given(1)])
    np.testing.assert_array_equal(times(both)[:, 1], 0)
    np.testing.assert_array_equal(both.index[:, [0, 2, 3]], later.index[:, [0, 2, 3]])


FLOW, TABLE = rectified_flow(), vp_scaled_linear()
LEADING = {"_class_name": "DDIMScheduler", "timestep_spacing": "leading"}
MULTISTEP = {"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}
PUBLISHED = {
    "stable diffusion, 50": (TABLE, diffusers_levels(LEADING, 50)),
    "stable diffusion, 4": (TABLE, diffusers_levels(LEADING, 4)),
    "flow": (FLOW, diffusers_levels({**MULTISTEP, "flow_shift": 3.0}, 20)),
    "edm below its noisiest level": (edm(), karras_levels(5, 0.02, 40.0)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_grids_start_from_noise_though_below_the_noisiest_level(name):
    process, levels = PUBLISHED[name]
    assert levels[0] < process.t_max
    matrix = freeze(synchronous(levels, 4), (1,))
    np.testing.assert_array_equal(starts_noisy(matrix, process), [True, False, True, True])
    later = truncate(synchronous(levels, 4), 1)
    assert not starts_noisy(later, process).any()  # another level than the first is an edit


def test_where_much_of_the_data_is_left_noise_is_no_start():
    levels = explicit_levels([0.7, 0.3])
    assert not starts_noisy(synchronous(levels, 2), FLOW).any()
    grids = jnp.stack([linspace_levels(2), levels, explicit_levels([0.9, 0.3])], axis=1)
    matrix = from_index(grids, np.arange(3)[:, None] * np.ones((1, 3), int))
    noisy = starts_noisy(matrix, FLOW)
    np.testing.assert_array_equal(noisy, [True, False, True])
    with pytest.raises(ConfigError, match=r"frames 1 .*row 0 has frame 1 at noise level 0\.7"):
        keep_given(matrix, noisy, [])


def test_a_level_is_the_first_row_at_which_frames_in_work_are_so_clean():
    for matrix in (MATRIX, freeze(MATRIX, [0])):  # .75, .5 and .25 after the first row
        found = [row_from(when, matrix) for when in ("0.8", "0.75", "0.74", "0.25", "row3")]
        assert found == [1, 1, 2, 3, 3]
    for when in ("0.2", "row4", "row 0", "1"):
        with pytest.raises(ConfigError, match="rows are 1 to 3"):
            row_from(when, MATRIX)
