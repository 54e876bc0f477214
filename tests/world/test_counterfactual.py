import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.world import counterfactual as c
from jvdm.world.ground_truth import geometry
from jvdm.world.scene import CAMERAS
from tests.world.shots import SMALL, many, pick

COMPARE = jax.jit(c.compare, static_argnums=2)
GEOMETRY = jax.jit(geometry, static_argnums=1)


def shot():
    return pick(many(SMALL, 16, num_objects=2, camera=0), 5)


CHANGES = {
    "recolor": lambda s: c.recolor(s, 0, (s.scene.color[0] + 1) % 7),
    "reshape": lambda s: c.reshape(s, 0, (s.scene.shape[0] + 1) % 3),
    "resize": lambda s: c.resize(s, 0, 1 - s.scene.size[0]),
    "remove": lambda s: c.remove(s, 0),
    "add": lambda s: c.add(s, 2),
    "move": lambda s: c.move(s, 0, jnp.array([0.3, 0.0, 0.2])),
}


@pytest.mark.parametrize("name", CHANGES)
def test_nothing_changes_outside_the_mask_and_everything_inside(name):
    edit = COMPARE(shot(), CHANGES[name](shot()), SMALL)
    same = np.asarray(edit.source) == np.asarray(edit.target)
    changed = np.asarray(edit.changed)
    assert same[~changed].all()
    assert 0.001 < changed.mean() < 0.5
    assert (~same.all(-1))[changed].mean() > 0.99


def test_recoloring_changes_the_object_and_no_shadow():
    changed = np.asarray(COMPARE(shot(), CHANGES["recolor"](shot()), SMALL).changed)
    object_ = np.asarray(GEOMETRY(shot(), SMALL).seg) == 1
    assert changed[object_].all()
    near = object_.copy()
    for axis in (1, 2):
        near |= np.roll(near, 1, axis) | np.roll(near, -1, axis)
    assert not (changed & ~near).any()


def test_removing_takes_the_shadow_too():
    before, after = GEOMETRY(shot(), SMALL), GEOMETRY(c.remove(shot(), 0), SMALL)
    changed = np.asarray(COMPARE(shot(), c.remove(shot(), 0), SMALL).changed)
    ground = np.asarray((before.seg == 0) & (after.seg == 0))
    brighter = np.asarray(after.rgb - before.rgb).min(-1) > 0.05
    assert (ground & brighter).sum() > 20
    assert changed[ground & brighter].all()
    assert not (np.asarray(after.seg) == 1).any()


def test_no_change_has_an_empty_mask():
    assert not np.asarray(COMPARE(shot(), shot(), SMALL).changed).any()


def test_a_resized_object_keeps_standing_on_the_ground():
    for size in (0, 1):
        after = c.resize(shot(), 0, size)
        lowest = np.asarray(after.trajectory.position[:, :2, 1] - after.scene.radius[None, :2])
        before = shot().trajectory.position[:, :2, 1] - shot().scene.radius[None, :2]
        np.testing.assert_allclose(lowest, before, atol=1e-6)


def test_resimulating_an_unchanged_scene_repeats_its_course():
    again = jax.jit(c.resimulate, static_argnums=1)(shot(), SMALL)
    np.testing.assert_allclose(again.trajectory.position, shot().trajectory.position, atol=1e-5)
    moved = c.resimulate(CHANGES["move"](shot()), SMALL)
    start = shot().scene.position[0] + jnp.array([0.3, 0.0, 0.2])
    np.testing.assert_allclose(moved.trajectory.position[0, 0], start, atol=1e-6)


def test_another_camera_films_the_same_events():
    orbit = c.other_camera(shot(), CAMERAS.index("orbit left"))
    np.testing.assert_array_equal(orbit.trajectory.position, shot().trajectory.position)
    assert np.asarray(COMPARE(shot(), orbit, SMALL).changed).mean() > 0.3
