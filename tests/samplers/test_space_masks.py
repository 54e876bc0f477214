"""Masks in space: as much as was asked for is covered, in rectangles, and never nothing."""

import jax
import numpy as np
import pytest

from jvdm.errors import ConfigError
from jvdm.samplers import MaskedPlaces, report_masks

KEY, SIZES = jax.random.key(0), (9, 8, 12)  # frames, rows, columns
MANY = jax.jit(lambda: MaskedPlaces(share=1.0)(KEY, 512, *SIZES))


def test_half_of_some_frames_is_made_and_the_ends_are_given():
    made = np.asarray(MANY())
    patches = made.reshape(512, 9, 4, 2, 6, 2).transpose(0, 1, 2, 4, 3, 5).reshape(512, 9, 24, 4)
    assert (patches.all(-1) == patches.any(-1)).all()  # tokens are masked whole
    count = patches.all(-1).sum(-1)
    assert count.max(1).min() >= 1 and count.max() == 12
    assert 0.4 < (count.max(1) / 24).mean() <= 0.5
    some = count > 0
    first, last = some.argmax(1), 9 - some[:, ::-1].argmax(1)
    assert set(first.tolist()) == {0, 1, 2, 3} and set(last.tolist()) == {6, 7, 8, 9}
    for clip, begin, end in zip(made[:50], first[:50], last[:50], strict=True):
        assert (clip[begin:end] == clip[begin]).all() and not clip[:begin].any()


def test_places_are_covered_alike_on_both_sides_and_masks_differ():
    made = np.asarray(MANY())
    assert len({clip[4].tobytes() for clip in made}) > 300
    report = report_masks(MaskedPlaces(share=1.0), KEY, *SIZES, clips=512)
    np.testing.assert_allclose(report.places, made.mean((0, 1)))
    # Four standard deviations of a share of 512 clips.
    assert np.abs(report.places - report.places[::-1, ::-1]).max() < 4 * (0.5 / 512) ** 0.5
    assert report.frames[0] < report.frames[4] > report.frames[8] and report.masked == 1


def test_a_share_of_the_clips_has_masks_and_neighbours_change_none():
    report = report_masks(MaskedPlaces(share=0.2), KEY, *SIZES, clips=2000)
    assert abs(report.masked - 0.2) < 4 * (0.16 / 2000) ** 0.5
    few = np.asarray(MaskedPlaces(share=1.0)(KEY, 3, *SIZES))
    np.testing.assert_array_equal(few, np.asarray(MANY())[:3])
    one = np.asarray(MaskedPlaces(share=1.0)(KEY, 64, 1, 3, 3))  # fewer than any margin, odd sides
    assert one.any((1, 2, 3)).all()
    assert np.asarray(MaskedPlaces(share=0.0)(KEY, 8, *SIZES)).all()


@pytest.mark.parametrize(
    "fields", [{"share": 1.5}, {"covered": 0.0}, {"margin": -1}, {"patch": 0}], ids=str
)
def test_masks_that_are_none_are_refused(fields):
    with pytest.raises(ConfigError, match="masks "):
        MaskedPlaces(**fields)
