"""Radial attention: discs that halve with the distance in time, and no more than the density."""

import numpy as np
import pytest

from jvdm.attention import Radial, TokenGrid, blocks_of
from jvdm.attention.radial import _radial
from jvdm.errors import ConfigError

TILES = (10, 5, 7)


def at(marked, frame, row, column):
    """What one patch attends to, as a grid."""
    return marked[np.ravel_multi_index((frame, row, column), TILES)].reshape(TILES)


def test_the_radius_halves_with_each_doubling_of_the_distance():
    seen = at(_radial(TILES, 4.0, 0), 0, 2, 3)
    rows, columns = np.indices(TILES[1:])
    beside = np.hypot(rows - 2, columns - 3)
    for distance, radius in enumerate((4, 2, 1, 1)):
        np.testing.assert_array_equal(seen[distance], beside <= radius)
    later = [int(seen[distance].sum()) for distance in range(4, 10)]
    assert later == [1, 0, 1, 0, 1, 0]  # half a patch from 4 on, a fourth from 8 on
    assert seen[8, 2, 3] and seen[4, 2, 3]


def test_what_attends_is_attended_to_but_for_a_sink():
    marked = _radial(TILES, 2.5, 0)
    np.testing.assert_array_equal(marked, marked.T)
    assert marked.diagonal().all()
    sunk = _radial(TILES, 2.5, 1)
    assert sunk[:, :35].all() and (sunk[:, 35:] == marked[:, 35:]).all()


def test_a_large_radius_is_dense_and_none_is_the_patch_itself():
    assert _radial(TILES, 1e4, 0).all()
    np.testing.assert_array_equal(_radial(TILES, 0.0, 0), np.eye(350, dtype=bool))


@pytest.mark.parametrize("density", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("sink", [0, 1])
def test_the_share_is_the_density_and_no_more(density, sink):
    blocks = blocks_of(TokenGrid(21, 12, 20, heads=1), 4)
    share = Radial(density, sink=sink).discs(blocks).mean()
    assert 0.8 * density <= share <= density


def test_the_cost_grows_as_frames_times_their_logarithm():
    """At one radius a patch lists about as many more for each doubling of the frames."""
    rows = [_radial((frames, 4, 4), 6.0, 0).sum(1).max() for frames in (16, 32, 64)]
    assert 0 <= rows[2] - rows[1] <= 1.2 * (rows[1] - rows[0]) + 2


def test_a_sink_of_more_frames_than_there_are_is_refused():
    blocks = blocks_of(TokenGrid(3, 4, 4, heads=1), 4)
    with pytest.raises(ConfigError, match="use a sink of 0 to 3"):
        Radial(0.9, sink=4).discs(blocks)
    with pytest.raises(ConfigError, match="a sink of 1 of 3 latent frames at density 0.3"):
        Radial(0.3, sink=1).discs(blocks)
