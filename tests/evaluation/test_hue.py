import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.world.palette import classify
from jvdm.world.render import PALETTE
from jvdm.world.scene import COLORS
from tests.evaluation.drawn import disc, ground, read


@pytest.mark.parametrize("light", [1.0, 0.45, 0.2])
def test_every_palette_colour_is_named_in_light_and_shadow(light):
    assert classify(jnp.asarray(light * PALETTE)).tolist() == list(range(len(COLORS)))


def test_ground_sky_and_halves_of_both_have_no_colour():
    pale = jnp.array([[0.42] * 3, [0.62, 0.70, 0.80], [0.52, 0.56, 0.61], [0.05, 0.0, 0.0]])
    assert classify(pale).tolist() == [-1] * 4


def test_a_disc_is_one_piece_at_its_place():
    clip = disc(ground(), "red", (30, 20), 8)
    tracks, _ = read(clip, "red")
    assert (tracks.pieces[0, :, 0] == 1).all() and (tracks.pieces[0, :, 1:] == 0).all()
    np.testing.assert_allclose(tracks.center[0, 0, 0], [29.5, 19.5], atol=0.1)
    np.testing.assert_allclose(tracks.area[0, 0, 0], np.pi * 64, rtol=0.06)
    assert not tracks.at_border.any() and not tracks.at_other.any()
    assert not tracks.stray.any()


def test_lengths_are_in_cells_whatever_the_resolution():
    small, _ = read(disc(ground(), "red", (30, 20), 8), "red")
    large, _ = read(disc(ground(size=128), "red", (60, 40), 16), "red")
    odd, _ = read(disc(ground(size=96), "red", (45, 30), 12), "red")
    for other in (large, odd):
        np.testing.assert_allclose(small.center, other.center, atol=0.3)
        np.testing.assert_allclose(small.area, other.area, rtol=0.08)


def test_two_discs_of_a_colour_are_two_pieces():
    clip = disc(disc(ground(), "red", (30, 15), 7), "red", (30, 45), 7)
    assert (read(clip, "red")[0].pieces[0, :, 0] == 2).all()


@pytest.mark.parametrize(("row", "radius"), [(30, 6), (30, 4), (36, 7)])
def test_an_object_that_another_one_divides_is_one_piece(row, radius):
    clip = disc(ground(), "red", (30, 30), 13)
    for step in range(-14, 15):  # a blue bar in front, broader than a disc
        disc(clip, "blue", (row + step, 30), radius)
    tracks, _ = read(clip, "red", "blue")
    assert (tracks.pieces[0, :, :2] == 1).all()
    assert tracks.at_other[0, :, :2].all()


def test_copies_on_both_sides_of_an_occluder_are_not_one_large_object():
    clip = disc(disc(ground(), "red", (30, 12), 8), "red", (30, 48), 8)
    for column in range(22, 39, 4):
        disc(clip, "blue", (30, column), 7)
    assert (read(clip, "red", "blue")[0].pieces[0, :, :2] == jnp.array([[2, 1]])).all()


def test_parts_that_are_further_apart_than_any_object_is_large_are_two():
    """The occluder fills a gap of 14 cells, which it may; both parts together span 50."""
    clip = disc(disc(ground(), "red", (30, 14), 9), "red", (30, 46), 9)
    clip[:, 26:35, 22:38] = 0.9 * PALETTE[COLORS.index("blue")]
    assert (read(clip, "red", "blue")[0].pieces[0, :, :2] == jnp.array([[2, 1]])).all()


@pytest.mark.parametrize(("apart", "elongation"), [(0, 1.0), (8, 1.6), (12, 2.0), (16, 2.6)])
def test_two_discs_in_one_are_long(apart, elongation):
    clip = disc(disc(ground(), "red", (20, 20), 9), "red", (20 + apart, 20 + apart), 9)
    found = read(clip, "red")[0].elongation[0, :, 0]
    np.testing.assert_allclose(found, elongation, atol=0.15)


def test_an_angle_is_not_convex():
    clip = ground()
    clip[:, 20:50, 20:30] = clip[:, 40:50, 20:50] = 0.9 * PALETTE[0]
    assert (read(clip, "red")[0].convexity[0, :, 0] < 0.75).all()


def test_a_box_is_convex_however_it_is_turned():
    for turn in np.linspace(0.0, 1.5, 6):
        rows, columns = np.mgrid[:64, :64] - 31.5
        along = np.cos(turn) * rows + np.sin(turn) * columns
        across = np.cos(turn) * columns - np.sin(turn) * rows
        clip = ground()
        clip[:, (abs(along) < 12) & (abs(across) < 8)] = 0.9 * PALETTE[0]
        tracks, _ = read(clip, "red")
        assert (tracks.convexity[0, :, 0] > 0.88).all()
        np.testing.assert_allclose(tracks.elongation[0, :, 0], 1.5, atol=0.06)


def test_a_colour_that_is_not_named_is_stray():
    clip = disc(disc(ground(), "red", (30, 15), 7), "green", (30, 45), 7)
    assert (read(clip, "red")[0].stray > 100).all()
    assert not read(clip, "red", "green")[0].stray.any()


def test_a_mixture_at_an_edge_is_not_stray():
    clip = disc(disc(ground(), "yellow", (30, 30), 12), "red", (30, 44), 8)
    blurred = (clip + np.roll(clip, 1, 2) + np.roll(clip, -1, 2)) / 3
    assert not read(blurred, "yellow", "red")[0].stray.any()


def test_an_edge_of_the_frame_is_noticed():
    assert read(disc(ground(), "red", (30, 6), 8), "red")[0].at_border[0, :, 0].all()
    for column in (14, 12.5):  # 6 and 4 cells from the edge
        assert not read(disc(ground(), "red", (30, column), 8), "red")[0].at_border.any()
