import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ConfigError
from jvdm.world import views as v
from jvdm.world.ground_truth import geometry
from jvdm.world.render import camera_path, orbit_camera, render
from tests.world.shots import SMALL, many, pick, small, small_geometry

RENDER = jax.jit(render, static_argnums=1)
REPROJECT = jax.jit(v.reproject, static_argnums=1)


def test_views_show_one_event_from_a_ring():
    shot = pick(small(), 0)
    ring = v.ring_cameras(4, 7)
    video = jax.jit(v.render_views, static_argnums=1)(shot, SMALL, ring)
    assert video.shape == (4, 7, 40, 56, 3)
    still = shot._replace(camera=camera_path(0, jnp.linspace(0, 1, 7)))
    np.testing.assert_allclose(video[0], RENDER(still, SMALL), atol=1e-5)
    assert np.abs(np.asarray(video[1] - video[0])).mean() > 0.005
    distance = np.linalg.norm(np.asarray(ring.eye)[..., ::2], axis=-1)
    np.testing.assert_allclose(distance, distance[0, 0], rtol=1e-6)


def test_equal_frames_of_two_views_are_the_same_instant():
    """A point that both cameras see has the same object coordinates in both."""
    shot = pick(small(), 2)
    other = v.orbit_camera(jnp.full(7, 0.4))
    seen = jax.jit(geometry, static_argnums=1)(shot._replace(camera=other), SMALL)
    source = RENDER(shot, dataclasses.replace(SMALL, supersample=1))
    right = REPROJECT(shot, SMALL, other, source)
    late = REPROJECT(shot, SMALL, other, jnp.roll(source, -3, 0))
    known = np.asarray(right.known) & (np.asarray(seen.seg) > 0)
    error = [np.abs(np.asarray(r.video - seen.rgb)).mean(-1)[known].mean() for r in (right, late)]
    assert known.sum() > 50
    assert error[0] < error[1]


def test_reprojection_is_exact_but_for_interpolation():
    shot = pick(small(), 1)
    camera = orbit_camera(jnp.full(7, 0.3))
    found = REPROJECT(shot, SMALL, camera)
    exact = RENDER(shot._replace(camera=camera), SMALL)
    known = np.asarray(found.known)
    assert 0.3 < known.mean() < 1
    assert (np.asarray(found.video)[~known] == 0).all()
    error = np.abs(np.asarray(found.video - exact)).mean(-1)
    assert error[known].mean() < 0.03


def test_reprojection_into_the_own_camera_is_the_source():
    shot, buffers = pick(small(), 3), pick(small_geometry(), 3)
    found = REPROJECT(shot, SMALL, shot.camera, buffers.rgb)
    inner = np.asarray(found.known)[:, 1:-1, 1:-1]
    same = np.asarray(found.video)[:, 1:-1, 1:-1][inner]
    np.testing.assert_allclose(same, buffers.rgb[:, 1:-1, 1:-1][inner], atol=1e-2)
    assert inner.mean() > 0.99


def test_blur_smears_what_moves_and_nothing_else():
    shot = pick(many(SMALL, 16, programme=2, num_objects=1, camera=0), 4)
    film = jax.jit(v.motion_blur, static_argnames=("world", "shutter", "samples"))
    sharp = RENDER(shot, SMALL)
    seg = jax.jit(geometry, static_argnums=1)(shot, SMALL).seg
    closed = film(shot.scene, world=SMALL, shutter=0.0, samples=1)
    open_ = film(shot.scene, world=SMALL, shutter=1.0, samples=7)
    # The mean over a pixel's rays is in linear light here, as displayed in the sharp clip.
    assert np.abs(np.asarray(closed - sharp)).mean() < 0.004
    change = np.abs(np.asarray(open_ - closed)).max(-1)
    assert change.max() > 0.05
    top = np.asarray(seg == 1).any((0, 2)).argmax()
    assert top > 3
    assert change[:, : top - 1].max() < 1e-5


def test_a_shutter_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="shutter is 1.5"):
        v.motion_blur(pick(small(), 0).scene, SMALL, shutter=1.5)
