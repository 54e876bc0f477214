"""Exact tracks of surface points, and pictures of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Bool, Float, Int, Key
from jvdm.world.ground_truth import Surface, correspond, geometry
from jvdm.world.render import Shot, instants, shade_buffers
from jvdm.world.scene import World


class Tracks(NamedTuple):
    """Points over time: pixel coordinates, depth, visibility, and what they belong to.

    `id` is 0 for the ground and object slot plus one otherwise.
    """

    uv: Float[Array, "T N 2"]
    z: Float[Array, "T N"]
    visible: Bool[Array, "T N"]
    id: Int[Array, " N"]


class TrackingVideo(NamedTuple):
    """Each pixel painted by where its point was in the first frame; see `tracking_video`."""

    video: Float[Array, "T H W 3"]
    known: Bool[Array, "T H W"]


def tracks(
    key: Key, shot: Shot, world: World, num_points: int, frame: int | Int[Array, ""] = 0
) -> Tracks:
    """Follows random points of one frame through all frames.

    An object pixel is chosen 7 times (e^2) as often as a ground pixel, the sky never.

    Args:
        key: Chooses the points.
        shot: What is filmed.
        world: Size of the pictures.
        num_points: Number `N` of points.
        frame: Frame whose pixels are followed.
    """
    size = (world.height, world.width)
    moments = instants(shot)
    now = jax.tree.map(lambda leaf: leaf[frame], moments)
    start = shade_buffers(now, shot.scene, size)
    seg = start.seg.reshape(-1)
    weight = jnp.where(seg > 0, 2.0, jnp.where(seg < 0, -1e9, 0.0))
    chosen = jax.random.categorical(key, weight, shape=(num_points,))
    surface = Surface(seg[chosen], start.local.reshape(-1, 3)[chosen])
    seen = jax.vmap(lambda then: correspond(surface, then, shot.scene, size))(moments)
    return Tracks(seen.uv, seen.z, seen.visible, surface.seg)


def tracking_video(shot: Shot, world: World) -> TrackingVideo:
    """Paints every pixel with `(u, v, nearness)` of its surface point in the first frame.

    Channels are `u / W`, `v / H` and `min(2.5 / z, 1)` of frame 0; pixels whose point
    was not visible there are black and not `known`. The colours tell where a point came
    from and nothing about which object it is on.

    Reference:
        3D tracking videos as a control signal: Diffusion as Shader (arXiv:2501.03847).
    """
    size = (world.height, world.width)
    buffers = geometry(shot, world)
    first = jax.tree.map(lambda leaf: leaf[0], instants(shot))

    def paint(seg, local):
        seen = correspond(Surface(seg, local), first, shot.scene, size)
        place = seen.uv / jnp.array([world.width, world.height])[None, None]
        near = jnp.clip(2.5 / jnp.maximum(seen.z, 0.1), 0.0, 1.0)
        color = jnp.concatenate([place, near[..., None]], -1)
        return jnp.where(seen.visible[..., None], color, 0.0), seen.visible

    return TrackingVideo(*jax.vmap(paint)(buffers.seg, buffers.local))
