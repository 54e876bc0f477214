import colorsys
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.world import render as r
from jvdm.world.scene import CAMERAS, World
from tests.world.shots import SMALL, flops, many, pick, small, small_geometry


def one_frame(shot, frame=3):
    return pick(r.instants(shot), frame), shot.scene


SHADE = jax.jit(r.shade, static_argnums=2)
BUFFERS = jax.jit(r.shade_buffers, static_argnums=2)
RENDER = jax.jit(r.render, static_argnums=1)
LIGHT = np.array([0.45, 0.8, 0.4]) / np.linalg.norm([0.45, 0.8, 0.4])


def test_color_is_equal_with_and_without_buffers():
    now = one_frame(pick(small(), 2))
    plain = SHADE(*now, (40, 56))
    full = BUFFERS(*now, (40, 56))
    np.testing.assert_allclose(plain, full.rgb, atol=1e-5)


def test_unused_buffers_cost_nothing():
    (camera, position, rotation), scene = one_frame(pick(small(), 0))

    def plain(camera, position):
        return r.shade(r.Instant(camera, position, rotation), scene, (40, 56))

    def full(camera, position):
        return r.shade_buffers(r.Instant(camera, position, rotation), scene, (40, 56))

    cost = flops(plain, camera, position)
    assert flops(lambda *pose: full(*pose).rgb, camera, position) <= 1.02 * cost
    assert flops(full, camera, position) > 1.05 * cost


def test_supersampling_one_is_one_ray_per_pixel():
    shot, world = pick(small(), 1), dataclasses.replace(SMALL, supersample=1)
    np.testing.assert_allclose(RENDER(shot, world), small_geometry().rgb[1], atol=1e-5)


def test_chosen_frames_are_those_of_the_whole_clip():
    shot = pick(small(), 4)
    some = RENDER(shot, SMALL, jnp.array([5, 0]))
    np.testing.assert_allclose(some, RENDER(shot, SMALL)[jnp.array([5, 0])], atol=1e-5)


@pytest.mark.parametrize("size", [(48, 48), (32, 64), (64, 32)])
def test_any_size_shows_the_same_middle(size):
    """Pixels are square; a longer side shows more of the world."""
    now, edge = one_frame(pick(small(), 3)), min(size)
    image = np.asarray(SHADE(*now, size))
    top, left = (size[0] - edge) // 2, (size[1] - edge) // 2
    middle = image[top : top + edge, left : left + edge]
    np.testing.assert_allclose(middle, SHADE(*now, (edge, edge)), atol=1e-5)


def test_visible_objects_have_the_hue_of_their_color():
    buffers, scene = small_geometry(), small().scene
    hues = np.array([colorsys.rgb_to_hsv(*color)[0] for color in r.PALETTE])
    checked = 0
    for clip in range(16):
        for slot in range(3):
            pixels = np.asarray(buffers.rgb[clip])[np.asarray(buffers.seg[clip]) == slot + 1]
            if len(pixels) == 0:
                continue
            assert scene.active[clip, slot]
            hue = np.array([colorsys.rgb_to_hsv(*pixel)[0] for pixel in pixels])
            apart = np.abs((hue[:, None] - hues[None] + 0.5) % 1 - 0.5)
            assert (apart.argmin(1) == int(scene.color[clip, slot])).all()
            checked += 1
    assert checked > 15


def test_hit_points_lie_on_the_surface_that_was_hit():
    buffers, scene = small_geometry(), small().scene
    seg, local = np.asarray(buffers.seg), np.asarray(buffers.local)
    assert np.abs(local[seg == 0][:, 1]).max() < 1e-4
    for clip in range(16):
        for slot in range(3):
            shape = int(scene.shape[clip, slot])
            q = local[clip][seg[clip] == slot + 1] / float(scene.radius[clip, slot])
            level = (
                np.linalg.norm(q, axis=-1),
                np.abs(q / np.array([0.86, 1.0, 0.86])).max(-1),
                np.maximum(np.linalg.norm(q[:, ::2], axis=-1) / 0.85, np.abs(q[:, 1])),
            )[shape]
            np.testing.assert_allclose(level, 1.0, atol=1e-3)


def test_an_object_darkens_what_is_behind_it_as_seen_from_the_light_and_nothing_else():
    """The shadow of a sphere is a cylinder along the light; its rim is left out."""
    shot, size = many(SMALL, 16, programme=0, num_objects=1, camera=0), (80, 112)
    dark = 0
    for clip in range(8):
        now, scene = one_frame(pick(shot, clip))
        alone, beside = (
            BUFFERS(now, scene._replace(active=scene.active & there), size)
            for there in (False, True)
        )
        ground = (np.asarray(alone.seg) == 0) & (np.asarray(beside.seg) == 0)
        offset = (np.asarray(alone.world) - np.asarray(now.position[0]))[ground]
        radius = float(scene.radius[0])
        along, aside = offset @ LIGHT, np.linalg.norm(np.cross(offset, LIGHT), axis=-1)
        ratio = (np.asarray(beside.rgb) / np.asarray(alone.rgb))[ground][:, 0]
        covered = (along < -0.5 * radius - 0.06) & (aside < 0.95 * radius - 0.06)
        outside = (along > -0.5 * radius + 0.06) | (aside > 0.95 * radius + 0.06)
        np.testing.assert_allclose(ratio[outside], 1.0, rtol=1e-5)
        assert (ratio[covered] < 0.8).all()
        dark += covered.sum()
    assert dark > 50


def test_light_comes_from_above_and_from_the_right():
    """The brightness of a ball grows with how far it faces the light, up to its paint."""
    now, scene = one_frame(pick(many(SMALL, 16, programme=0, num_objects=1, camera=0), 0))
    scene = scene._replace(shape=jnp.zeros(3, jnp.int32))
    buffers = BUFFERS(now, scene, (160, 224))
    ball = np.asarray(buffers.seg) == 1
    facing = np.asarray(buffers.normal)[ball] @ LIGHT
    value = np.asarray(buffers.rgb)[ball].max(-1)
    assert value[facing > 0.8].max() > 1.3 * value[facing < 0].max()


def test_normals_are_unit_and_face_the_camera():
    buffers, camera = small_geometry(), small().camera
    toward = np.asarray(camera.eye)[:, :, None, None] - np.asarray(buffers.world)
    solid = np.asarray(buffers.seg) >= 0
    normal = np.asarray(buffers.normal)[solid]
    np.testing.assert_allclose(np.linalg.norm(normal, axis=-1), 1.0, atol=2e-2)
    # Rounding decides between two faces at an edge that is seen from the side.
    assert ((normal * toward[solid]).sum(-1) > -1e-2).mean() > 0.9995


def test_no_half_turn_looks_like_the_start():
    """Points of an object are told apart by its paint."""
    shot = many(SMALL, 16, programme=0, num_objects=1, camera=0)
    now, scene = one_frame(pick(shot, 0))
    turned = now.rotation.at[0]
    half = jnp.diag(jnp.array([-1.0, 1.0, -1.0]))
    for shape in range(3):
        scene = scene._replace(shape=scene.shape.at[0].set(shape))
        front = SHADE(now, scene, (40, 56))
        back = SHADE(now._replace(rotation=turned.set(now.rotation[0] @ half)), scene, (40, 56))
        assert float(jnp.abs(front - back).max()) > 0.05


def test_camera_programmes_do_what_they_are_called():
    progress = jnp.linspace(0, 1, 5)
    path = {name: r.camera_path(kind, progress) for kind, name in enumerate(CAMERAS)}
    forward = {name: np.asarray(camera.basis[:, 2]) for name, camera in path.items()}
    static = path["static"]
    assert (np.ptp(static.eye, axis=0) == 0).all() and (np.ptp(static.focal) == 0).all()
    for name, camera in path.items():
        stays = np.ptp(np.asarray(camera.eye), axis=0).max() < 1e-6
        assert stays == ("orbit" not in name)
        assert (np.ptp(np.asarray(camera.focal)) < 1e-6) == ("zoom" not in name)
    assert (np.diff(forward["pan right"][:, 0]) > 0).all()
    assert (np.diff(forward["pan left"][:, 0]) < 0).all()
    assert (np.diff(np.asarray(path["orbit right"].eye)[:, 0]) > 0).all()
    assert (np.diff(np.asarray(path["zoom in"].focal)) > 0).all()
    np.testing.assert_allclose(path["pan left"].basis, path["pan right"].basis[::-1], atol=1e-6)


def test_rendering_is_differentiable_in_the_objects():
    shot, world = pick(small(), 0), World(height=8, width=8, num_frames=7)

    def brightness(position):
        course = shot.trajectory._replace(position=position)
        return r.render(shot._replace(trajectory=course), world).sum()

    slope = jax.jit(jax.grad(brightness))(shot.trajectory.position)
    assert np.isfinite(slope).all() and np.abs(slope).max() > 0


def test_a_long_wide_world_renders():
    world = World(height=8, width=24, num_frames=70, supersample=1)
    video = jax.jit(jax.vmap(lambda shot: r.render(shot, world)))(many(world, 2))
    assert video.shape == (2, 70, 8, 24, 3)
    assert float(video.min()) >= 0 and float(video.max()) <= 1
