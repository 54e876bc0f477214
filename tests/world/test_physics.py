import dataclasses

import jax
import numpy as np
import pytest

from jvdm.world.physics import simulate
from jvdm.world.scene import ARENA, FRICTION, World
from tests.world.shots import FULL, many, whole


def quiet(trajectory, axis_count=1):
    """Frames `[n, T - 2, K]` around which nothing is touched for two intervals."""
    push = trajectory.ground_impulse + trajectory.wall_impulse
    push = np.asarray(push + abs(trajectory.pair_impulse).sum(-1))
    return (push[:, :-2] == 0) & (push[:, 1:-1] == 0)


@pytest.mark.parametrize("gravity", [9.8, 3.0])
def test_free_flight_is_the_exact_parabola(gravity):
    world = dataclasses.replace(FULL, gravity=gravity, num_frames=9)
    shot = many(world, 32, programme=5, num_objects=1)
    height = np.asarray(shot.trajectory.position[:, :, 0, 1])
    lowest = np.minimum(np.minimum(height[:, :-2], height[:, 1:-1]), height[:, 2:])
    free = (lowest > np.asarray(shot.scene.radius)[:, :1] + 0.05) & quiet(shot.trajectory)[..., 0]
    acceleration = np.diff(height, 2, axis=1)[free] * world.fps**2
    assert free.sum() > 50
    np.testing.assert_allclose(acceleration, -gravity, atol=2e-3)


def test_energy_is_never_gained_by_an_object_alone():
    shot = many(FULL, 64, programme=5, num_objects=1)
    course = shot.trajectory
    speed = (course.velocity[:, :, 0] ** 2).sum(-1) / 2
    energy = np.asarray(speed + FULL.gravity * course.position[:, :, 0, 1])
    # Half a step of free fall is the error of the integrator, periodic and no gain.
    slack = FULL.gravity / (FULL.fps * FULL.substeps) * np.abs(course.velocity[:, :, 0, 1])
    total = np.asarray(energy - slack / 2 * np.sign(course.velocity[:, :, 0, 1]))
    assert np.diff(total, axis=1).max() < 0.02
    assert (energy[:, -1] < energy[:, 0] - 1).all()


def test_every_bounce_is_slower_than_the_impact():
    course = many(FULL, 64, programme=5, num_objects=1).trajectory
    height = np.asarray(course.position[:, :, 0, 1])
    bottom = height.min(1, keepdims=True)
    hit = np.asarray(course.ground_impulse[:, :, 0]) > 0
    for clip in range(64):
        ends = [0, *np.flatnonzero(hit[clip]), height.shape[1] - 1]
        peaks = [
            height[clip, a : b + 1].max() - bottom[clip, 0]
            for a, b in zip(ends, ends[1:], strict=False)
        ]
        assert all(
            later <= earlier + 1e-3 for earlier, later in zip(peaks, peaks[1:], strict=False)
        )


def test_objects_stay_above_ground_and_inside_the_arena():
    shot = whole()
    place = np.abs(np.asarray(shot.trajectory.position))
    radius = np.asarray(shot.scene.radius)[:, None]
    active = np.broadcast_to(np.asarray(shot.scene.active)[:, None], place.shape[:3])
    assert (np.asarray(shot.trajectory.position[..., 1]) >= radius - 1e-5).all()
    assert (place[..., 0] + radius)[active].max() < ARENA[0] + 0.05
    assert (place[..., 2] + radius)[active].max() < ARENA[1] + 0.05


def test_collisions_conserve_momentum():
    shot = whole()
    mass = np.asarray(shot.scene.radius)[:, None] ** 3
    pair = np.asarray(shot.trajectory.pair_impulse)
    assert (pair > 0.1).any()
    np.testing.assert_allclose(
        mass[..., None] * pair, np.swapaxes(mass[..., None] * pair, -1, -2), atol=1e-5
    )


def test_inactive_objects_touch_nothing():
    shot = whole()
    inactive = ~np.asarray(shot.scene.active)
    pair = np.asarray(shot.trajectory.pair_impulse)
    assert not (pair.max((1, 2)) * inactive).any() and not (pair.max((1, 3)) * inactive).any()


def test_rotations_stay_rotations():
    turn = np.asarray(whole().trajectory.rotation[:, -1])
    product = np.einsum("nkij,nkil->nkjl", turn, turn)
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(3), product.shape), atol=1e-4)


def test_balls_roll_without_slipping():
    shot = many(FULL, 64, programme=2, num_objects=1)
    turn, course = (
        np.asarray(shot.trajectory.rotation[:, :, 0]),
        np.asarray(shot.trajectory.position),
    )
    balls = np.asarray(shot.scene.shape[:, 0] == 0)
    step = np.einsum("ntij,ntkj->ntik", turn[:, 1:], turn[:, :-1])
    angle = np.arccos(np.clip((np.trace(step, axis1=2, axis2=3) - 1) / 2, -1, 1))
    moved = np.linalg.norm(np.diff(course[:, :, 0], axis=1), axis=-1)
    rolled = angle * np.asarray(shot.scene.radius[:, :1])
    np.testing.assert_allclose(rolled[balls], moved[balls], atol=2e-3)


def turns(rotation):
    """Rotation vectors `[n, T - 1, 3]` between frames: axis times angle."""
    step = np.einsum("ntij,ntkj->ntik", rotation[:, 1:], rotation[:, :-1])
    axis = np.stack([step[..., i, j] - step[..., j, i] for i, j in ((2, 1), (0, 2), (1, 0))], -1)
    sine = np.linalg.norm(axis, axis=-1, keepdims=True) / 2
    return axis / 2 * np.arcsin(np.minimum(sine, 1)) / np.maximum(sine, 1e-9)


def test_balls_roll_the_way_they_go_and_other_shapes_turn_at_their_rate():
    """The lowest point of a ball that rolls stands still: it turns about `up x velocity`."""
    shot = many(FULL, 64, programme=2, num_objects=1)
    turned = turns(np.asarray(shot.trajectory.rotation[:, :, 0]))
    moved = np.diff(np.asarray(shot.trajectory.position[:, :, 0]), axis=1)
    balls = np.asarray(shot.scene.shape[:, 0] == 0)
    rolled = np.cross([0.0, 1.0, 0.0], moved) / np.asarray(shot.scene.radius)[:, :1, None]
    np.testing.assert_allclose(turned[balls], rolled[balls], atol=5e-3)
    rate = np.asarray(shot.scene.yaw_rate)[~balls, :1, None] / FULL.fps * np.array([0.0, 1.0, 0.0])
    assert np.abs(rate).max() > 0.01
    np.testing.assert_allclose(
        turned[~balls], np.broadcast_to(rate, turned[~balls].shape), atol=2e-3
    )


def test_what_touches_is_pushed_apart():
    shot = whole()
    place, active = np.asarray(shot.trajectory.position), np.asarray(shot.scene.active)
    apart = np.linalg.norm(place[:, :, :, None] - place[:, :, None], axis=-1)
    radius = np.asarray(shot.scene.radius)
    reach = (radius[:, :, None] + radius[:, None])[:, None]
    pair = (active[:, :, None] & active[:, None] & ~np.eye(3, dtype=bool))[:, None]
    assert np.where(pair, apart - reach, 1.0).min() > -0.15


def test_what_slides_is_slowed_at_one_rate_and_what_rolls_is_not():
    shot = many(FULL, 64, programme=2, num_objects=1)
    free = quiet(shot.trajectory)[..., 0]
    speed = np.linalg.norm(np.asarray(shot.trajectory.velocity[:, :, 0, ::2]), axis=-1)
    kept = (speed[:, 1:] / speed[:, :-1])[:, :-1]
    balls = np.asarray(shot.scene.shape[:, 0] == 0)[:, None] & free
    np.testing.assert_allclose(kept[balls], 1.0, rtol=1e-5)
    slid = kept[~np.asarray(shot.scene.shape[:, 0] == 0)[:, None] & free]
    assert len(slid) > 50
    np.testing.assert_allclose(slid, np.exp(-FRICTION / FULL.fps), rtol=5e-3)


def test_the_frame_rate_changes_when_not_what():
    scene = jax.tree.map(lambda leaf: leaf[:8], whole().scene)
    coarse = jax.vmap(lambda s: simulate(s, World(), 9))(scene)
    fine = jax.vmap(lambda s: simulate(s, World(fps=36.0, substeps=2), 25))(scene)
    np.testing.assert_allclose(coarse.position, fine.position[:, ::3], atol=1e-5)
    np.testing.assert_allclose(coarse.rotation, fine.rotation[:, ::3], atol=1e-4)


def test_substeps_are_a_loop_on_a_cpu_and_none_on_a_gpu(monkeypatch):
    """Both give the same numbers; a loop compiles in less time, and none runs in less on a GPU."""
    scene = jax.tree.map(lambda leaf: leaf[0], many(FULL, 64, programme=5, num_objects=1).scene)

    def program():
        return jax.jit(lambda: simulate(scene, FULL, 5)).lower()

    looped = program()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    unrolled = program()
    loops = [lowered.as_text().count("stablehlo.while") for lowered in (looped, unrolled)]
    assert loops == [2, 1]  # that of frames is left
    one, other = (lowered.compile()() for lowered in (looped, unrolled))
    jax.tree.map(np.testing.assert_array_equal, one, other)
