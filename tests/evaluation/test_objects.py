import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.evaluation.objects import color_set_right, count_right, mean_speed, permanence
from tests.evaluation.drawn import FRAMES, disc, ground, read

HALF = slice(FRAMES // 2, None)


def verdicts(clip, *colors):
    """Whether count and permanence are right, and the names of the faults."""
    tracks, active = read(clip, *colors)
    kept = permanence(tracks, active)
    faults = [name for name, found in kept._asdict().items() if bool(found[0])]
    return bool(count_right(tracks, active)[0]), faults


def still():
    return disc(disc(ground(), "red", (30, 15), 7), "blue", (30, 45), 7)


def test_a_clip_without_a_fault_passes():
    assert verdicts(still(), "red", "blue") == (True, [])


def test_a_duplicate_for_some_frames_is_wrong_and_created():
    clip = disc(still(), "red", (55, 30), 6, HALF)
    assert verdicts(clip, "red", "blue") == (False, ["created"])


def test_a_duplicate_in_every_frame_is_a_wrong_count_alone():
    assert verdicts(disc(still(), "red", (55, 30), 6), "red", "blue") == (False, [])


def test_two_objects_that_melt_into_one_are_a_wrong_count():
    clip = disc(disc(ground(), "red", (20, 20), 8), "red", (32, 32), 8)
    assert verdicts(clip, "red") == (False, [])
    assert verdicts(disc(ground(), "red", (20, 20), 8), "red")[0] is True


def test_a_colour_that_is_not_named_is_wrong():
    assert verdicts(disc(still(), "green", (55, 30), 6), "red", "blue")[0] is False
    assert verdicts(disc(still(), "green", (55, 30), 6, HALF), "red", "blue")[1] == ["created"]


def test_an_object_that_vanishes_in_the_open_is_lost():
    clip = disc(disc(ground(), "blue", (30, 45), 7), "red", (30, 15), 7, slice(0, 4))
    assert verdicts(clip, "red", "blue") == (False, ["lost"])


def test_an_object_that_appears_in_the_open_is_created():
    clip = disc(disc(ground(), "blue", (30, 45), 7), "red", (30, 15), 7, HALF)
    assert verdicts(clip, "red", "blue") == (False, ["created"])


def test_an_object_that_is_never_seen_is_lost():
    assert verdicts(still(), "red", "blue", "green") == (False, ["lost"])


def test_an_object_may_leave_the_frame():
    path = np.stack([np.full(FRAMES, 30.0), 12.0 - 4.0 * np.arange(FRAMES)], -1)
    clip = disc(disc(ground(), "blue", (30, 45), 7), "red", path, 7)
    assert verdicts(clip, "red", "blue") == (True, [])


def test_an_object_may_pass_behind_another_one():
    path = np.stack([np.full(17, 30.0), 10.0 + 2.5 * np.arange(17)], -1)
    clip = disc(disc(ground(17), "red", path, 5), "blue", (30, 32), 9)
    tracks, _ = read(clip, "red", "blue")
    assert (tracks.pieces[0, :, 0] == 0).any() and (tracks.pieces[0, -1] > 0)[:2].all()
    assert verdicts(clip, "red", "blue") == (True, [])


def test_a_whole_object_does_not_vanish_beside_another_one():
    clip = disc(ground(), "blue", (30, 45), 7)
    disc(clip, "red", (30, 30), 7, slice(0, 4))
    assert verdicts(clip, "red", "blue")[1] == ["lost"]


@pytest.mark.parametrize(("step", "faults"), [(6.0, []), (12.0, ["jumped"])])
def test_a_jump_is_further_than_things_fall(step, faults):
    column = np.where(np.arange(FRAMES) < 4, 15.0, 15.0 + step)
    path = np.stack([np.full(FRAMES, 40.0), column], -1)
    clip = disc(disc(ground(), "blue", (12, 50), 7), "red", path, 6)
    assert verdicts(clip, "red", "blue")[1] == faults


def test_exchanged_colours_are_jumps():
    clip = disc(disc(ground(), "red", (30, 15), 7, slice(0, 4)), "blue", (30, 45), 7, slice(0, 4))
    disc(disc(clip, "blue", (30, 15), 7, slice(4, None)), "red", (30, 45), 7, slice(4, None))
    assert verdicts(clip, "red", "blue")[1] == ["jumped"]


def test_a_sudden_change_of_size_is_noticed():
    clip = disc(disc(ground(), "red", (30, 30), 6, slice(0, 4)), "red", (30, 30), 9, slice(4, None))
    assert verdicts(clip, "red")[1] == ["resized"]


def test_colour_sets_are_exact():
    tracks, active = read(still(), "red", "blue")
    assert color_set_right(tracks, active).all()
    for colors in (("red",), ("red", "blue", "green"), ("red", "green")):
        assert not color_set_right(*read(still(), *colors)).any()


def test_speed_is_in_cells_per_frame():
    path = np.stack([np.full(FRAMES, 30.0), 10.0 + 3.0 * np.arange(FRAMES)], -1)
    tracks, _ = read(disc(ground(), "red", path, 6), "red")
    np.testing.assert_allclose(mean_speed(tracks)[0], jnp.array([3.0, 0.0, 0.0]), atol=0.05)
