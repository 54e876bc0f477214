import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.evaluation.objects import (
    GRAVITY,
    Permanence,
    color_set_right,
    count_right,
    direction_right,
    gravity_fit,
    mean_speed,
    permanence,
    relation_right,
)
from jvdm.world.render import PALETTE, camera_path
from jvdm.world.scene import COLORS, RADII, VERBS, Facts
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


def test_objects_are_kept_where_nothing_went_wrong():
    faults = jnp.array(list(itertools.product([False, True], repeat=4)))
    np.testing.assert_array_equal(Permanence(*faults.T).kept, ~faults.any(1))


def test_a_duplicate_for_some_frames_is_wrong_and_created():
    clip = disc(still(), "red", (55, 30), 6, HALF)
    assert verdicts(clip, "red", "blue") == (False, ["created"])


def test_a_duplicate_in_every_frame_is_a_wrong_count_alone():
    assert verdicts(disc(still(), "red", (55, 30), 6), "red", "blue") == (False, [])


def test_a_duplicate_that_is_lost_with_its_original_is_not_created():
    tracks, active = read(disc(still(), "red", (55, 30), 6), "red", "blue")
    tracks = tracks._replace(pieces=tracks.pieces.at[0, -3:, 0].set(0))
    kept = permanence(tracks, active)
    assert kept.lost.all() and not kept.created.any()


def test_two_objects_that_melt_into_one_are_a_wrong_count():
    clip = disc(disc(ground(), "red", (20, 20), 8), "red", (32, 32), 8)
    assert verdicts(clip, "red") == (False, [])
    assert verdicts(disc(ground(), "red", (20, 20), 8), "red")[0] is True


def test_what_is_too_long_or_too_hollow_is_no_single_object():
    bar = ground()
    bar[:, 20:34, 12:46] = 0.9 * PALETTE[COLORS.index("red")]
    tracks, active = read(bar, "red")
    assert (tracks.convexity[0, :, 0] > 0.95).all() and not count_right(tracks, active).any()
    cross = ground()
    cross[:, 20:46, 29:37] = cross[:, 29:37, 20:46] = 0.9 * PALETTE[COLORS.index("red")]
    tracks, active = read(cross, "red")
    assert (tracks.elongation[0, :, 0] < 1.1).all() and not count_right(tracks, active).any()


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


def faults_at(fps, clip):
    kept = permanence(*read(clip, "red"), fps)
    return [name for name, found in kept._asdict().items() if bool(found[0])]


def test_limits_are_per_second_and_not_per_frame():
    path = np.stack([np.full(FRAMES, 40.0), 10.0 + 6.0 * np.arange(FRAMES)], -1)
    moving = disc(ground(), "red", path, 6)
    assert (faults_at(12.0, moving), faults_at(24.0, moving)) == ([], ["jumped"])
    grown = disc(ground(), "red", (30, 30), 8)
    disc(grown, "red", (30, 30), 9, slice(4, None))
    assert (faults_at(12.0, grown), faults_at(24.0, grown)) == ([], ["resized"])


def test_what_is_half_hidden_may_seem_to_move_further():
    """A step of 11 cells is a jump in the open, and none beside another object."""
    column = np.where(np.arange(FRAMES) < 4, 15.0, 26.0)
    path = np.stack([np.full(FRAMES, 40.0), column], -1)
    for blue, faults in (((40, 41), []), ((12, 50), ["jumped"])):
        clip = disc(disc(ground(), "blue", blue, 7), "red", path, 6)
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
    half, _ = read(disc(ground(), "red", path, 6, slice(0, 5)), "red")  # seen in half of the clip
    np.testing.assert_allclose(mean_speed(half)[0], jnp.array([3.0, 0.0, 0.0]), atol=0.05)


def told(verbs, camera=0, count=1):
    """Facts of one clip whose objects do `verbs`, as far as the rules read them."""
    slots = [VERBS.index(verb) for verb in verbs] + [0] * (3 - len(verbs))
    zero = jnp.zeros((1, 3), jnp.int32)
    still = jnp.zeros((1, 1, 3, 3))
    active = jnp.arange(3)[None] < len(verbs)
    verb = jnp.asarray([slots], jnp.int32)
    return Facts(active, zero, zero, zero, verb, zero, jnp.array([camera]), still, still)


def moving(step):
    """A red disc that moves by `step` columns from the first to the last frame."""
    path = np.stack([np.full(FRAMES, 30.0), 32.0 + step * np.linspace(-0.5, 0.5, FRAMES)], -1)
    return read(disc(ground(), "red", path, 6), "red")[0]


def test_directions_are_those_of_the_image_under_a_camera_that_stands():
    for verb, sign in (("moves left", -1), ("moves right", 1)):
        answers = [direction_right(moving(sign * step), told([verb])) for step in (8, 2, -8)]
        assert [bool(right[0, 0]) for right, _ in answers] == [True, False, False]
        assert all(counted.tolist() == [[True, False, False]] for _, counted in answers)
    for facts in (told(["moves left"], camera=1), told(["comes closer"])):
        assert not direction_right(moving(8), facts)[1].any()


def test_relations_are_those_of_the_image():
    """Red is to the left of blue, and its lower edge is lower: in front."""
    clip = disc(disc(ground(), "red", (40, 15), 7), "blue", (25, 45), 7)
    tracks = read(clip, "red", "blue")[0]
    answers = [relation_right(tracks, told(["rests"] * 2), jnp.array([w])) for w in range(4)]
    assert [bool(right[0]) for right, _ in answers] == [
        name in ("left", "in front") for name in ("left", "right", "behind", "in front")
    ]
    assert all(counted.all() for _, counted in answers)
    in_the_air = told(["rests", "drops"])
    counted = [relation_right(tracks, in_the_air, jnp.array([w]))[1][0] for w in (-1, 0, 1, 2, 3)]
    assert list(map(bool, counted)) == [False, True, True, False, False]


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_gravity_is_that_of_the_projected_fall(share):
    """A ball falls behind the middle of the world, lands in frame 6 and bounces."""
    camera, radius, time = camera_path(0, jnp.zeros(1)), float(RADII[0]), np.arange(FRAMES) / 15
    height = radius + np.abs(share * GRAVITY / 2 * (time[6] ** 2 - time**2))
    point = np.stack([0 * height, height, 0 * height - 1.0], -1) - np.asarray(camera.eye)
    right, down, depth = (point @ np.asarray(camera.basis[0]).T).T
    place = np.stack([down, right], -1) / depth[:, None] * float(camera.focal[0]) * 32 + 32
    tracks = read(disc(ground(), "red", place, 4), "red")[0]
    tracks = tracks._replace(center=tracks.center.at[0, :, 0].set(place - 0.5))  # not whole cells
    fall = gravity_fit(tracks, told(["drops"]), fps=15.0)
    assert fall.valid.tolist() == [[True, False, False]]
    np.testing.assert_allclose(fall.ratio[0, 0], share, rtol=1e-2)
    assert float(fall.residual[0, 0]) < 1e-3
    for facts in (told(["rests"]), told(["drops"], camera=1)):
        assert not gravity_fit(tracks, facts, fps=15.0).valid.any()
