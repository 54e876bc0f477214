"""High dynamic range and wide colour against what the standards say."""

import numpy as np
import pytest

from jvdm.media import colour
from jvdm.media.colour import BT2020, DISPLAY_P3, HLG, PQ


def shown(rgb, transfer, primaries=BT2020):
    """Shows one colour of codes in 0..1."""
    codes = np.rint(65535 * np.array(rgb, np.float64)).astype(np.uint16)
    return colour.to_bt709(np.broadcast_to(codes, (1, 1, 3)).copy(), transfer, primaries)[0, 0]


def pq(nits):
    """SMPTE ST 2084, from its text: the code of a luminance in cd/m2."""
    y = (nits / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375


@pytest.mark.parametrize("nits", [0.0, 1.0, 10.0, 50.0, 90.0])
def test_dark_light_stays_as_it_is(nits):
    expected = 255 * (nits / 203) ** (1 / 2.4)
    assert np.abs(shown([pq(nits)] * 3, PQ).astype(float) - expected).max() <= 1


def test_highlights_are_compressed_in_order_up_to_the_peak():
    values = [int(shown([pq(nits)] * 3, PQ)[0]) for nits in (100, 203, 400, 600, 1000, 4000)]
    assert values[:4] == sorted(set(values[:4]) - {255}) and values[4:] == [255, 255]


def test_both_systems_agree_on_reference_white():
    """ITU-R BT.2408: 203 cd/m2 is 58 % of PQ and 75 % of HLG on a screen of 1,000 cd/m2."""
    one, other = shown([pq(203)] * 3, PQ).astype(int), shown([0.75] * 3, HLG).astype(int)
    assert np.abs(one - other).max() <= 1 and np.ptp(other) == 0


def test_colours_of_bt709_are_found_in_the_wider_gamut():
    """Red of BT.709 in BT.2020: its column of the matrix of ITU-R BT.2087."""
    red = np.array([0.6274, 0.0691, 0.0164]) * 80
    value = shown(pq(red), PQ).astype(int)
    assert abs(value[0] - 255 * (80 / 203) ** (1 / 2.4)) <= 1 and value[1:].max() <= 12


def test_wide_colours_of_an_ordinary_range_keep_greys():
    for primaries in (BT2020, DISPLAY_P3):
        grey = shown([0.5] * 3, 1, primaries).astype(int)
        assert np.abs(grey - 127.5).max() <= 1
        assert shown([0.8, 0.4, 0.4], 1, primaries)[0] > round(255 * 0.8)


def test_what_is_wide():
    assert colour.is_wide(PQ, 1) and colour.is_wide(2, BT2020) and not colour.is_wide(1, 1)
