"""Windows: what a tile sees, in the middle and at borders."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.windows import parted_windows, sliding_windows

sizes = st.tuples(*[st.integers(1, 5)] * 3)


@settings(max_examples=30)
@given(sizes, sizes)
def test_every_tile_sees_a_box_of_equal_size_around_it(tiles, window):
    window = tuple(min(pair) for pair in zip(window, tiles, strict=True))
    seen = sliding_windows(tiles, window)
    places = np.indices(tiles).reshape(3, -1)
    assert (seen.sum(1) == math.prod(window)).all()
    assert seen.diagonal().all()
    for tile, row in enumerate(seen):
        inside = places[:, row]
        assert tuple(np.ptp(inside, axis=1) + 1) == window
        reach = np.abs(inside - places[:, tile : tile + 1])
        near = (places[:, tile] >= np.array(window) // 2) & (
            places[:, tile] < np.array(tiles) - np.array(window) // 2
        )
        assert (reach.max(1)[near] <= np.array(window)[near] // 2).all()


@settings(max_examples=30)
@given(sizes, sizes, sizes)
def test_windows_of_a_partition_are_shared_and_whole_away_from_borders(tiles, window, shift):
    window = tuple(min(pair) for pair in zip(window, tiles, strict=True))
    seen = parted_windows(tiles, window, shift)
    np.testing.assert_array_equal(seen, seen.T)
    np.testing.assert_array_equal(seen, seen @ seen)  # a relation of equivalence
    assert seen.diagonal().all() and (seen.sum(1) <= math.prod(window)).all()


def test_two_shifts_join_what_one_separates():
    one, two = (parted_windows((1, 1, 8), (1, 1, 4), (0, 0, shift)) for shift in (0, 2))
    assert one[0].nonzero()[0].tolist() == [0, 1, 2, 3]
    assert two[0].nonzero()[0].tolist() == [0, 1] and two[2].nonzero()[0].tolist() == [2, 3, 4, 5]
    assert (one.astype(int) @ two @ one > 0).all()


@pytest.mark.parametrize("make", [sliding_windows, parted_windows])
def test_a_window_larger_than_the_grid_is_refused(make):
    with pytest.raises(ValueError, match=r"a window of \(1, 3, 1\) tiles on a grid of \(1, 2, 2\)"):
        make((1, 2, 2), (1, 3, 1))
