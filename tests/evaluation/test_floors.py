"""What the measures say of true clips: samples cannot be expected to do better."""

import functools

import jax
import numpy as np
import pytest

from jvdm.evaluation.estimates import estimate
from jvdm.evaluation.held_out import SETS, draw, film
from jvdm.evaluation.measure import measure_clips
from jvdm.world.scene import World

pytestmark = pytest.mark.slow

WORLD = World(height=96, width=96, supersample=1)
CLIPS = 24


def clips(name):
    drawn = draw(SETS[name], WORLD, CLIPS)
    return drawn, film(drawn.shot, WORLD)


@functools.cache
def measuring():
    return jax.jit(functools.partial(measure_clips, fps=WORLD.fps))


@functools.cache
def floors(name, mirrored=False):
    drawn, frames = clips(name)
    frames = frames[:, :, :, ::-1] if mirrored else frames
    measures = measuring()(frames, drawn.facts, drawn.relation)
    return {
        key: estimate(np.asarray(value), np.asarray(counted))
        for key, (value, counted) in measures.items()
    }


@pytest.mark.parametrize("name", ["B", "C"])
def test_true_clips_have_the_right_objects_in_every_frame(name):
    found = floors(name)
    assert found["count"].mean == found["permanence"].mean == found["colour set"].mean == 1
    assert found["created"].mean == found["jumped"].mean == found["resized"].mean == 0


def test_true_clips_move_and_fall_as_they_are_told_to():
    found = floors("B")
    assert found["direction"].mean == 1.0 and found["direction"].count >= 6
    assert abs(found["gravity"].mean - 1.0) < 0.08 and found["gravity"].count >= 2
    assert found["gravity residual"].mean < 0.02


def test_relations_are_read_from_the_first_frames():
    found = floors("R")
    assert found["relation"].mean >= 0.95 and found["relation"].count >= 16
    assert floors("B")["relation"].count == 0


def test_mirrored_clips_change_left_and_right_and_keep_what_is_in_front():
    plain, mirrored = floors("R"), floors("R", mirrored=True)
    sides, depths = plain["left or right"], plain["behind or in front"]
    assert sides.mean >= 0.95 and depths.mean >= 0.95 and min(sides.count, depths.count) >= 3
    assert sides.count + depths.count == plain["relation"].count
    assert mirrored["left or right"].mean <= 0.05
    assert mirrored["behind or in front"].mean == depths.mean
