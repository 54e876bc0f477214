"""The same events filmed otherwise: more cameras, one camera's pixels in another, long shutters."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Bool, Float
from jvdm.errors import ConfigError
from jvdm.world.ground_truth import Surface, correspond, geometry, sample_at
from jvdm.world.physics import simulate
from jvdm.world.render import Camera, Shot, camera_path, instants, orbit_camera, render, shade
from jvdm.world.scene import Scene, World

_GAMMA = 2.2


class Reprojection(NamedTuple):
    """Pixels of one camera seen from another; holes are black and not `known`."""

    video: Float[Array, "T H W 3"]
    known: Bool[Array, "T H W"]


def ring_cameras(num_views: int, num_frames: int, height: float = 2.1) -> Camera:
    """Returns still cameras `[V, T]` at equal angles around the arena; view 0 is the static one.

    Args:
        num_views: Number `V` of cameras.
        num_frames: Frames `T` for which each stands still.
        height: Height of the cameras above the ground.
    """
    angle = jnp.arange(num_views) * (2 * np.pi / num_views)
    return orbit_camera(jnp.broadcast_to(angle[:, None], (num_views, num_frames)), height)


def render_views(shot: Shot, world: World, cameras: Camera) -> Float[Array, "V T H W 3"]:
    """Films one event with several cameras `[V, T]`; equal frames are equal instants.

    For the geometry of a view, use `shot._replace(camera=...)` with `geometry`.
    """
    return jax.lax.map(lambda camera: render(shot._replace(camera=camera), world), cameras)


def reproject(
    shot: Shot, world: World, camera: Camera, video: Float[Array, "T H W 3"] | None = None
) -> Reprojection:
    """Shows to a new camera path what the shot's own camera sees of the same instants.

    Args:
        shot: The filmed event with the source camera.
        world: Size of both pictures.
        camera: The new path `[T]`.
        video: The source's pixels; None renders them.
    """
    source = render(shot, world) if video is None else video
    target = geometry(shot._replace(camera=camera), world)

    def frame(image, now, seg, local):
        size = (world.height, world.width)
        seen = correspond(Surface(seg, local), now, shot.scene, size)
        known = seen.visible
        return jnp.where(known[..., None], sample_at(image, seen.uv), 0.0), known

    return Reprojection(*jax.vmap(frame)(source, instants(shot), target.seg, target.local))


def motion_blur(
    scene: Scene, world: World, *, shutter: float = 0.8, samples: int = 8
) -> Float[Array, "T H W 3"]:
    """Films with an open shutter: the mean, in linear light, of instants around each frame.

    The trajectory is the sharp clip's own, because physics substeps become frames. The
    first frame sees only what follows it.

    Args:
        scene: What is filmed, with its camera programme.
        world: Size, rates and length.
        shutter: Share of the frame time for which the shutter is open, 0..1.
        samples: Instants per frame; each is the physics substep that is nearest.

    Raises:
        ConfigError: If the shutter is not in 0..1 or there is no sample.
    """
    if not 0 <= shutter <= 1 or samples < 1:
        raise ConfigError(
            f"shutter is {shutter}, samples {samples}",
            "the shutter is open for 0..1 of a frame, in at least one sample",
        )
    sub = world.substeps
    fine = dataclasses.replace(world, fps=world.fps * sub, substeps=1)
    trajectory = simulate(scene, fine, world.num_frames * sub)
    span = max((world.num_frames - 1) * sub, 1)
    camera = camera_path(scene.camera, jnp.arange(world.num_frames * sub) / span)
    moments = instants(Shot(scene, trajectory, camera))
    offset = np.round(np.linspace(-0.5, 0.5, samples) * shutter * sub).astype(int)
    index = np.clip(np.arange(world.num_frames)[:, None] * sub + offset, 0, None)
    index = np.minimum(index, world.num_frames * sub - 1)
    s, size = world.supersample, (world.supersample * world.height, world.supersample * world.width)

    def frame(steps):
        open_ = jax.tree.map(lambda leaf: leaf[steps], moments)
        light = jax.vmap(lambda now: shade(now, scene, size) ** _GAMMA)(open_).mean(0)
        light = light.reshape(world.height, s, world.width, s, 3).mean((1, 3))
        return light ** (1 / _GAMMA)

    return jax.lax.map(frame, jnp.asarray(index))
