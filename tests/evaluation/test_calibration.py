"""Every measure ranks its planted defect below the true clip; no other rule is asked for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.evaluation.measure import measure_clips
from jvdm.evaluation.temporal import frame_change, jitter, seam_index
from jvdm.fidelity import psnr
from jvdm.world.clips import facts, shoot
from jvdm.world.render import render
from jvdm.world.scene import PROGRAMMES, World, scene_key
from tests.evaluation.defects import DEFECTS

pytestmark = pytest.mark.slow

WORLD = World(height=64, width=64, supersample=1)
CLIPS = 6


@functools.cache
def planted():
    """Falling objects beside another one: the true clips, every defect, and the facts."""

    def one(index):
        shot = shoot(
            scene_key("test", index),
            WORLD,
            num_objects=2,
            camera=0,
            programme=PROGRAMMES.index("drop"),
        )
        key = jax.random.fold_in(jax.random.key(0), index)
        true = render(shot, WORLD)
        clips = {name: plant(shot, true, WORLD, key) for name, plant in DEFECTS.items()}
        return {**clips, "true": true}, facts(shot.scene, shot.trajectory, WORLD)

    return jax.jit(jax.vmap(one))(jnp.arange(CLIPS))


@functools.cache
def measures(name):
    clips, told = planted()
    measure = jax.jit(functools.partial(measure_clips, fps=WORLD.fps))
    found = measure(clips[name], told, jnp.full(CLIPS, -1))
    return {key: (np.asarray(v, float), np.asarray(on)) for key, (v, on) in found.items()}


def mean(name, measure):
    value, counted = measures(name)[measure]
    return value[counted].mean()


def test_true_clips_are_right():
    assert mean("true", "count") == mean("true", "permanence") == mean("true", "colour set") == 1


@pytest.mark.parametrize(
    ("defect", "measure"),
    [
        ("vanished", "count"),
        ("vanished", "permanence"),
        ("duplicated", "count"),
        ("duplicated", "permanence"),
        ("teleport", "permanence"),
        ("swapped", "permanence"),
        ("shuffled", "permanence"),
        ("colour drift", "colour set"),
        ("colour drift", "permanence"),
    ],
)
def test_objects_that_are_not_kept_are_noticed(defect, measure):
    assert mean(defect, measure) <= 0.3, (defect, measures(defect)[measure])


@pytest.mark.parametrize(
    ("defect", "fault"),
    [
        ("vanished", "lost"),
        ("duplicated", "created"),
        ("teleport", "jumped"),
        ("swapped", "jumped"),
        ("colour drift", "lost"),
    ],
)
def test_a_fault_has_its_own_name(defect, fault):
    assert mean(defect, fault) >= 0.7
    assert mean("true", fault) == 0


def test_weak_gravity_is_measured_as_what_it_is():
    assert abs(mean("true", "gravity") - 1.0) < 0.1
    assert abs(mean("weak gravity", "gravity") - 1 / 3) < 0.1
    assert mean("weak gravity", "permanence") == 1.0  # it breaks nothing else


@pytest.mark.parametrize("defect", ["shuffled", "flicker"])
def test_flicker_changes_every_clip_more_than_motion_does(defect):
    clips, _ = planted()
    for measure in (frame_change, jitter):
        assert (measure(clips[defect]) > 1.5 * measure(clips["true"])).all()


def test_a_frozen_clip_changes_less():
    clips, _ = planted()
    assert (frame_change(clips["frozen"]) < 0.8 * frame_change(clips["true"])).all()
    assert mean("frozen", "speed, cells per frame") < 0.8 * mean("true", "speed, cells per frame")


def test_a_seam_shows_at_its_border_alone():
    clips, _ = planted()
    half = WORLD.num_frames // 2
    at_seam = seam_index(clips["seam"], [half])
    assert (at_seam > 2.0 * seam_index(clips["true"], [half])).all()
    assert (at_seam > 2.0 * seam_index(clips["seam"], [half + 2])).all()


def test_every_defect_differs_from_its_clip():
    clips, _ = planted()
    for name in DEFECTS:
        assert (psnr(clips[name], clips["true"]) < 45).mean() > 0.8, name
