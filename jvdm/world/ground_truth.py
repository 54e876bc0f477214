"""Exact answers about a shot: geometry, edges, flow, occlusion, camera matrices.

Every function is pure and takes a `Shot`; under `jit`, what is not used is not computed.
All questions of the kind "where is this surface point at another time, in another
camera?" go through `correspond`.

Pixel coordinates are `(u, v)` = (column, row); whole numbers are pixel centres.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Bool, Float, Int
from jvdm.world.render import (
    FAR,
    Buffers,
    Camera,
    Instant,
    Shot,
    instants,
    intersect,
    into_object,
    out_of_object,
    shade_buffers,
)
from jvdm.world.scene import MAX_OBJECTS, Scene, World

# A point counts as seen if nothing is in front of it by more than this.
_TOLERANCE = 2e-2


class Surface(NamedTuple):
    """Points fixed to objects, to the ground or to the sky.

    `seg` and `local` are those of `Buffers`: object slot plus one, and the point in
    coordinates of the object, or of the world where `seg` is not positive.
    """

    seg: Int[Array, "*P"]
    local: Float[Array, "*P 3"]


class Seen(NamedTuple):
    """Where points are in a picture.

    `visible` is true for points inside the picture with nothing in front; `uv` and `z`
    are right for hidden points too, but meaningless behind the camera.
    """

    uv: Float[Array, "*P 2"]
    z: Float[Array, "*P"]
    visible: Bool[Array, "*P"]


class Flow(NamedTuple):
    """Exact motion of surface points between frames `t` and `t + 1`, in pixels.

    `forward[t]` belongs to the pixels of frame `t`, `backward[t]` to those of frame
    `t + 1`; a pixel is occluded where its point is not visible in the other frame.
    """

    forward: Float[Array, "S H W 2"]
    backward: Float[Array, "S H W 2"]
    forward_occluded: Bool[Array, "S H W"]
    backward_occluded: Bool[Array, "S H W"]


class CameraMatrices(NamedTuple):
    """Pinhole matrices for pixel centres at whole numbers, axes right, down, forward."""

    intrinsics: Float[Array, "*T 3 3"]
    camera_to_world: Float[Array, "*T 4 4"]


def geometry(shot: Shot, world: World) -> Buffers:
    """Casts one ray per pixel and frame; see `Buffers` for the fields `[T, H, W, ...]`."""

    size = (world.height, world.width)
    return jax.vmap(lambda now: shade_buffers(now, shot.scene, size))(instants(shot))


def correspond(surface: Surface, now: Instant, scene: Scene, size: tuple[int, int]) -> Seen:
    """Finds surface points at an instant and in a camera.

    Visibility comes from a ray to the projected point itself, so it does not depend on
    the resolution of a depth image.

    Args:
        surface: Points, any shape.
        now: The instant and the camera that look at them.
        scene: Shapes and radii.
        size: `(height, width)` of the picture.
    """
    point = [surface.local[..., i] for i in range(3)]
    eye, basis = now.camera.eye, now.camera.basis
    for k in range(MAX_OBJECTS):
        here, carried = surface.seg == k + 1, out_of_object(now.rotation[k], point)
        point = [jnp.where(here, carried[i] + now.position[k, i], point[i]) for i in range(3)]
    offset = [point[i] - eye[i] for i in range(3)]
    right, down, z = out_of_object(basis, offset)  # Rows are the axes of the camera.
    safe = jnp.where(jnp.abs(z) > 1e-4, z, 1e-4)
    uv = _pixels(now.camera, right / safe, down / safe, size)
    direction = [offset[i] / safe for i in range(3)]
    nearest = _nearest(now, direction, scene, surface.seg < 0)
    inside = (uv >= 0).all(-1) & (uv[..., 0] <= size[1] - 1) & (uv[..., 1] <= size[0] - 1)
    return Seen(uv, z, inside & (z > 0.1) & (nearest > z - _TOLERANCE))


def _pixels(camera, right, down, size):
    """Pixel coordinates of directions of unit depth."""
    scale = camera.focal * (min(size) / 2)
    return jnp.stack([right * scale + (size[1] - 1) / 2, down * scale + (size[0] - 1) / 2], -1)


def _nearest(now, direction, scene, sky):
    """Depth of the first object along each ray; for the sky, of the ground as well."""
    eye = now.camera.eye
    downward = jnp.minimum(direction[1], -1e-4)
    ground = jnp.where(direction[1] < -1e-4, -eye[1] / downward, jnp.inf)
    nearest = jnp.where(sky & (ground < FAR), ground, jnp.inf)
    for k in range(MAX_OBJECTS):
        turn, offset = now.rotation[k], eye - now.position[k]
        start = into_object(turn, [offset[i] for i in range(3)])
        along = into_object(turn, direction)
        reach = intersect(start, along, scene.shape[k], scene.radius[k])
        hit = scene.active[k] & (reach > 1e-3) & (reach < FAR)
        nearest = jnp.where(hit, jnp.minimum(nearest, reach), nearest)
    return nearest


def pixel_grid(height: int, width: int) -> Float[Array, "H W 2"]:
    """Returns the coordinates `(u, v)` of all pixels."""
    v, u = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    return jnp.stack([u, v], -1).astype(jnp.float32)


def flow(shot: Shot, world: World, buffers: Buffers | None = None) -> Flow:
    """Returns exact flow and occlusion between neighbouring frames.

    Args:
        shot: A shot of `T` frames; the result has `S = T - 1` entries.
        world: Size of the pictures.
        buffers: `geometry(shot, world)` if it is there already.
    """
    found = geometry(shot, world) if buffers is None else buffers
    surface, moments = Surface(found.seg, found.local), instants(shot)
    first, before = jax.tree.map(lambda x: x[:-1], (surface, moments))
    last, after = jax.tree.map(lambda x: x[1:], (surface, moments))
    size = (world.height, world.width)

    def one(points, moment):
        return correspond(points, moment, shot.scene, size)

    ahead, back = jax.vmap(one)(first, after), jax.vmap(one)(last, before)
    grid = pixel_grid(*size)[None]
    return Flow(ahead.uv - grid, back.uv - grid, ~ahead.visible, ~back.visible)


def edges(buffers: Buffers) -> Bool[Array, "T H W"]:
    """Marks outlines and creases of objects; the horizon and the tiles are no edges.

    A pixel is compared with the ones above and to the left: another id is an outline if
    either is an object, and normals of one object more than 45 degrees apart a crease.
    """
    ids, normal = buffers.seg, buffers.normal
    found = jnp.zeros(ids.shape, bool)
    for axis in (1, 2):
        before, facing = _previous(ids, axis), _previous(normal, axis)
        outline = (ids != before) & ((ids > 0) | (before > 0))
        bent = (normal * facing).sum(-1) < np.cos(np.pi / 4)
        found = found | outline | (bent & (ids == before) & (ids > 0))
    return found


def _previous(image, axis):
    """Shifts by one pixel along an axis and repeats the first."""
    first = jax.lax.slice_in_dim(image, 0, 1, axis=axis)
    return jnp.concatenate([first, jax.lax.slice_in_dim(image, 0, -1, axis=axis)], axis)


def camera_matrices(camera: Camera, world: World) -> CameraMatrices:
    """Returns intrinsics and camera-to-world matrices of a path `[T]` of cameras."""
    zero, one = jnp.zeros_like(camera.focal), jnp.ones_like(camera.focal)
    scale = camera.focal * (min(world.height, world.width) / 2)
    middle = (one * (world.width - 1) / 2, one * (world.height - 1) / 2)
    rows = ((scale, zero, middle[0]), (zero, scale, middle[1]), (zero, zero, one))
    intrinsics = jnp.stack([jnp.stack(row, -1) for row in rows], -2)
    pose = jnp.concatenate([jnp.swapaxes(camera.basis, -1, -2), camera.eye[..., None]], -1)
    last = jnp.broadcast_to(jnp.array([0.0, 0.0, 0.0, 1.0]), (*camera.focal.shape, 1, 4))
    return CameraMatrices(intrinsics, jnp.concatenate([pose, last], -2))


def amodal_masks(shot: Shot, world: World) -> Bool[Array, "T K H W"]:
    """Returns what each object covers if nothing else were there; inactive slots cover nothing."""
    slots = jnp.eye(MAX_OBJECTS, dtype=bool) & shot.scene.active[:, None]

    def alone(active):
        return geometry(shot._replace(scene=shot.scene._replace(active=active)), world).seg > 0

    return jnp.moveaxis(jax.vmap(alone)(slots), 0, 1)


def visible_fraction(shot: Shot, world: World) -> Float[Array, "T K"]:
    """Returns the share of each object's own pixels that others leave free; 1 if it has none."""
    whole = amodal_masks(shot, world).sum((2, 3))
    slots = jnp.arange(1, MAX_OBJECTS + 1)[None, :, None, None]
    seen = (geometry(shot, world).seg[:, None] == slots).sum((2, 3))
    return jnp.where(whole > 0, seen / jnp.maximum(whole, 1), 1.0)


def sample_at(image: Float[Array, "H W C"], uv: Float[Array, "*P 2"]) -> Float[Array, "*P C"]:
    """Reads an image at pixel coordinates, bilinearly, with the border repeated."""
    height, width = image.shape[:2]
    u, v = jnp.clip(uv[..., 0], 0, width - 1), jnp.clip(uv[..., 1], 0, height - 1)
    left = jnp.clip(jnp.floor(u), 0, max(width - 2, 0)).astype(jnp.int32)
    top = jnp.clip(jnp.floor(v), 0, max(height - 2, 0)).astype(jnp.int32)
    right, low = jnp.minimum(left + 1, width - 1), jnp.minimum(top + 1, height - 1)
    a, b = (u - left)[..., None], (v - top)[..., None]
    upper = image[top, left] * (1 - a) + image[top, right] * a
    lower = image[low, left] * (1 - a) + image[low, right] * a
    return upper * (1 - b) + lower * b


def warp(image: Float[Array, "H W C"], motion: Float[Array, "H W 2"]) -> Float[Array, "H W C"]:
    """Fetches each pixel from where `motion` points to: backward warping.

    With `flow.forward[t]` and frame `t + 1` it predicts frame `t`.
    """
    return sample_at(image, pixel_grid(*motion.shape[:2]) + motion)
