"""Which frames of a run stay as they are given, and which are only where it starts."""

from types import SimpleNamespace

import numpy as np

from jvdm.rows import keep_given
from jvdm.samplers import linspace_levels, synchronous, times, truncate

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
