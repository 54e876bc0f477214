"""Analytic ray caster of the world: balls, boxes and cans on a tiled ground.

Vectors are triples of `[h, w]` arrays and objects are unrolled in Python, without a
gather or an argmin: XLA then fuses a whole frame into few kernels, which is what makes
rendering inside a training step cheap.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float, Int
from jvdm.world.physics import Trajectory
from jvdm.world.scene import CAMERAS, MAX_OBJECTS, Scene, World

PALETTE = np.array(
    [
        [0.90, 0.10, 0.10],
        [0.12, 0.75, 0.15],
        [0.15, 0.25, 0.95],
        [0.95, 0.85, 0.10],
        [0.80, 0.15, 0.85],
        [0.10, 0.80, 0.85],
        [0.95, 0.50, 0.06],
    ],
    np.float32,
)
"""Surface colour of each entry of `COLORS`, as displayed."""

FAR = 60.0
"""Depth at which the ground ends and the sky begins."""

_NOTHING = 1e9
_LIGHT = np.array([0.45, 0.8, 0.4], np.float32) / np.linalg.norm([0.45, 0.8, 0.4])
_SKY = (0.62, 0.70, 0.80)
# Proportions in units of the radius, chosen so that the three shapes look equally large.
_BOX_HALF = (0.86, 1.0, 0.86)
_CAN_RADIUS = 0.85
_EYE_DISTANCE, _EYE_HEIGHT, _TARGET_HEIGHT, _FOCAL = 4.6, 2.1, 0.5, 2.0


class Camera(NamedTuple):
    """Pinhole camera of one frame, or with a leading axis of a path.

    The rows of `basis` are the right, down and forward directions in the world.
    `focal` is in units of half of the shorter image side.
    """

    eye: Float[Array, "*T 3"]
    basis: Float[Array, "*T 3 3"]
    focal: Float[Array, "*T"]


class Shot(NamedTuple):
    """All that determines a clip's pixels and its ground truth."""

    scene: Scene
    trajectory: Trajectory
    camera: Camera


class Instant(NamedTuple):
    """Camera and object poses at one time, or with a leading axis at many times."""

    camera: Camera
    position: Float[Array, "*T K 3"]
    rotation: Float[Array, "*T K 3 3"]


class Buffers(NamedTuple):
    """What the ray through each pixel hits first; with a leading axis for many frames.

    Attributes:
        rgb: Colour as displayed, 0..1, one ray per pixel.
        depth: Distance along the camera's forward axis; `FAR` for the sky.
        seg: -1 sky, 0 ground, 1..K object slot plus one.
        normal: Outward surface normal in the world; up for the sky.
        world: Hit point in the world; the sky's is practically infinitely far away.
        local: Hit point in object coordinates; the world point where no object is.
    """

    rgb: Float[Array, "*T h w 3"]
    depth: Float[Array, "*T h w"]
    seg: Int[Array, "*T h w"]
    normal: Float[Array, "*T h w 3"]
    world: Float[Array, "*T h w 3"]
    local: Float[Array, "*T h w 3"]


def instants(shot: Shot) -> Instant:
    """Returns cameras and poses of all frames of a shot."""
    return Instant(shot.camera, shot.trajectory.position, shot.trajectory.rotation)


def look_at(eye: Float[Array, "*T 3"], target: Float[Array, "*T 3"]) -> Float[Array, "*T 3 3"]:
    """Returns the camera basis (rows right, down, forward) with a level horizon."""
    forward = target - eye
    forward = forward / jnp.linalg.norm(forward, axis=-1, keepdims=True)
    up = jnp.broadcast_to(jnp.array([0.0, 1.0, 0.0]), forward.shape)
    right = jnp.cross(forward, up)
    right = right / jnp.linalg.norm(right, axis=-1, keepdims=True)
    return jnp.stack([right, -jnp.cross(right, forward), forward], -2)


def orbit_camera(
    angle: Float[Array, "*T"], height: float = _EYE_HEIGHT, focal: float = _FOCAL
) -> Camera:
    """Returns cameras on the ring around the arena; angle 0 is the static camera."""
    zero = 0 * angle
    eye = [_EYE_DISTANCE * jnp.sin(angle), zero + height, _EYE_DISTANCE * jnp.cos(angle)]
    target = jnp.stack([zero, zero + _TARGET_HEIGHT, zero], -1)
    eye = jnp.stack(eye, -1)
    return Camera(eye, look_at(eye, target), zero + focal)


def camera_path(kind: int | Int[Array, ""], progress: Float[Array, " T"]) -> Camera:
    """Returns the camera of a programme.

    Args:
        kind: Index of `CAMERAS`; may be traced.
        progress: Share of the clip that has passed at each frame, 0..1.
    """
    sign = jnp.asarray([0.0, -1.0, 1.0, -1.0, 1.0, 1.0, -1.0])[kind] * (progress - 0.5)
    name = [jnp.asarray([word in camera for camera in CAMERAS])[kind] for word in _MOVES]
    pan, orbit, zoom = (jnp.where(moves, sign, 0.0) for moves in name)
    path = orbit_camera(0.7 * orbit)
    zero = 0 * progress
    target = jnp.stack([1.6 * pan, zero + _TARGET_HEIGHT, zero], -1)
    # A zoom passes through a slightly longer focal length than the static camera's.
    focal = _FOCAL + jnp.where(name[2], 0.05, 0.0) + 0.9 * zoom
    return Camera(path.eye, look_at(path.eye, target), focal)


_MOVES = ("pan", "orbit", "zoom")


def render(
    shot: Shot, world: World, frames: Int[Array, " T"] | None = None
) -> Float[Array, "T H W 3"]:
    """Draws the frames of a shot, supersampled.

    Args:
        shot: Scene, trajectory and camera path of equal length.
        world: Size and supersampling.
        frames: Indices of the frames to draw; None draws all.
    """
    s, height, width = world.supersample, world.height, world.width

    def draw(now):
        return _light(_cast(now, shot.scene, (s * height, s * width)), now, shot.scene)

    moments = instants(shot)
    if frames is not None:
        moments = jax.tree.map(lambda leaf: leaf[frames], moments)
    fine = [part.reshape(-1, height, s, width, s) for part in jax.vmap(draw)(moments)]
    return jnp.stack(_means(*fine), -1)


def _means(*channels: Array) -> tuple[Array, ...]:
    """Averages the rays of each pixel, all channels in one pass.

    Separate averages, or channels stacked before them, would make XLA cast every
    ray once per channel.
    """

    def add(left, right):
        return tuple(a + b for a, b in zip(left, right, strict=True))

    zeros = tuple(jnp.zeros(()) for _ in channels)
    sums = jax.lax.reduce(channels, zeros, add, (2, 4))
    count = channels[0].shape[2] * channels[0].shape[4]
    return jax.lax.optimization_barrier(tuple(part / count for part in sums))


def shade(now: Instant, scene: Scene, size: tuple[int, int]) -> Float[Array, "h w 3"]:
    """Returns the colour at the centre of each pixel of a `(height, width)` image."""
    return jnp.stack(_light(_cast(now, scene, size), now, scene), -1)


def shade_buffers(now: Instant, scene: Scene, size: tuple[int, int]) -> Buffers:
    """Returns `shade`'s colour with the geometry behind it."""
    hit = _cast(now, scene, size)
    rgb = _light(hit, now, scene)
    seg = jnp.where(hit.depth < FAR, 0, -1)
    local = hit.point
    for k in range(MAX_OBJECTS):
        here = hit.near[k]
        own = into_object(now.rotation[k], [hit.point[i] - now.position[k, i] for i in range(3)])
        seg = jnp.where(here, k + 1, seg)
        local = [jnp.where(here, own[i], local[i]) for i in range(3)]
    stacked = [jnp.stack(triple, -1) for triple in (rgb, hit.normal, hit.point, local)]
    depth = jnp.minimum(hit.depth, FAR)
    return Buffers(stacked[0], depth, seg, stacked[1], stacked[2], stacked[3])


class _Hit(NamedTuple):
    """First surface along each ray, as triples of images."""

    depth: Array  # Along the forward axis; _NOTHING for the sky.
    direction: list[Array]
    point: list[Array]
    normal: list[Array]
    color: list[Array]
    near: list[Array]  # Per object: whether it is the first.


def _cast(now, scene, size):
    """Finds the first surface and its unlit colour."""
    direction = _rays(now.camera, size)
    eye = [now.camera.eye[i] for i in range(3)]
    downward = jnp.minimum(direction[1], -1e-4)
    depth = jnp.where(direction[1] < -1e-4, -eye[1] / downward, _NOTHING)
    depth = jnp.where(depth < FAR, depth, _NOTHING)
    tile = _tiles(eye[0] + depth * direction[0], eye[2] + depth * direction[2], depth)
    color, zero = [tile] * 3, jnp.zeros(size)
    normal, near = [zero, zero + 1.0, zero], []
    for k in range(MAX_OBJECTS):
        turn, shape, radius = now.rotation[k], scene.shape[k], scene.radius[k]
        start = into_object(turn, [eye[i] - now.position[k, i] for i in range(3)])
        along = into_object(turn, direction)
        reach = intersect(start, along, shape, radius)
        first = (reach > 1e-3) & (reach < depth) & scene.active[k]
        depth = jnp.where(first, reach, depth)
        near = [other & ~first for other in near] + [first]
        place = [(start[i] + reach * along[i]) / radius for i in range(3)]
        outward = out_of_object(turn, _local_normal(place, shape))
        paint = _paint(place)
        for i in range(3):
            normal[i] = jnp.where(first, outward[i], normal[i])
            color[i] = jnp.where(first, jnp.asarray(PALETTE)[scene.color[k], i] * paint, color[i])
    point = [eye[i] + depth * direction[i] for i in range(3)]
    return _Hit(depth, direction, point, normal, color, near)


def _rays(camera, size):
    """Directions through the pixel centres, of unit length along the forward axis."""
    height, width = size
    unit = 2.0 / (min(height, width) * camera.focal)
    down = ((jnp.arange(height) + 0.5 - height / 2) * unit)[:, None]
    right = ((jnp.arange(width) + 0.5 - width / 2) * unit)[None]
    basis = camera.basis
    return [right * basis[0, i] + down * basis[1, i] + basis[2, i] for i in range(3)]


def into_object(rotation: Float[Array, "3 3"], vector: list) -> list:
    """Turns the components of a triple of arrays from world to object axes."""
    return [sum(rotation[j, i] * vector[j] for j in range(3)) for i in range(3)]


def out_of_object(rotation: Float[Array, "3 3"], vector: list) -> list:
    """Turns the components of a triple of arrays from object to world axes."""
    return [sum(rotation[i, j] * vector[j] for j in range(3)) for i in range(3)]


def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def intersect(start: list, along: list, shape: Array, radius: Array) -> Array:
    """Distance to one object in units of `along`; a huge number where it is missed.

    Args:
        start: Ray origin in object coordinates, a triple that broadcasts with `along`.
        along: Ray direction in object coordinates, a triple of equal arrays.
        shape: Index of `SHAPES`.
        radius: Radius of the object.
    """
    ball = _ball(start, along, radius)
    inverse = [1.0 / jnp.where(jnp.abs(x) < 1e-6, 1e-6, x) for x in along]
    box = _box(start, inverse, radius)
    can = _can(start, along, inverse[1], radius)
    return jnp.where(shape == 0, ball, jnp.where(shape == 1, box, can))


def _root(square):
    """Square root with a finite gradient where there is no real one."""
    return jnp.sqrt(jnp.where(square > 0, square, 1.0))


def _ball(start, along, radius):
    a, b = _dot(along, along), _dot(start, along)
    inside = b * b - a * (_dot(start, start) - radius * radius)
    near = (-b - _root(inside)) / a
    return jnp.where(inside > 0, near, _NOTHING)


def _box(start, inverse, radius):
    enter, leave = -_NOTHING, _NOTHING
    for i in range(3):
        one = (-_BOX_HALF[i] * radius - start[i]) * inverse[i]
        two = (_BOX_HALF[i] * radius - start[i]) * inverse[i]
        enter = jnp.maximum(enter, jnp.minimum(one, two))
        leave = jnp.minimum(leave, jnp.maximum(one, two))
    return jnp.where((enter < leave) & (enter > 0), enter, _NOTHING)


def _can(start, along, inverse_y, radius):
    wide = (_CAN_RADIUS * radius) ** 2
    a = along[0] ** 2 + along[2] ** 2
    b = start[0] * along[0] + start[2] * along[2]
    inside = b * b - a * (start[0] ** 2 + start[2] ** 2 - wide)
    side = (-b - _root(inside)) / jnp.maximum(a, 1e-9)
    height = start[1] + side * along[1]
    side = jnp.where((inside > 0) & (jnp.abs(height) < radius), side, _NOTHING)
    lid = (jnp.sign(start[1]) * radius - start[1]) * inverse_y
    across = (start[0] + lid * along[0]) ** 2 + (start[2] + lid * along[2]) ** 2
    lid = jnp.where((across < wide) & (jnp.abs(start[1]) > radius), lid, _NOTHING)
    return jnp.minimum(side, jnp.where(lid > 0, lid, _NOTHING))


def _local_normal(place, shape):
    """Outward normal at `place`, in object coordinates and units of the radius."""
    share = [jnp.abs(place[i]) / _BOX_HALF[i] for i in range(3)]
    x_most = share[0] > jnp.maximum(share[1], share[2])
    y_most = ~x_most & (share[1] > share[2])
    most = (x_most, y_most, ~x_most & ~y_most)
    lid = jnp.abs(place[1]) > 0.999
    box = [jnp.where(most[i], jnp.sign(place[i]), 0.0) for i in range(3)]
    can = [jnp.where(lid, 0.0, place[i] / _CAN_RADIUS) for i in range(3)]
    can[1] = jnp.where(lid, jnp.sign(place[1]), 0.0)
    return [
        jnp.where(shape == 0, place[i], jnp.where(shape == 1, box[i], can[i])) for i in range(3)
    ]


def _tiles(x, z, depth):
    """Grey level of the ground: large tiles that fade before they alias."""
    fade = jnp.clip(1.6 - depth / 9.0, 0.0, 1.0)
    even = (jnp.floor(x / 1.5) + jnp.floor(z / 1.5)) % 2 == 0
    return 0.42 + 0.07 * fade * jnp.where(even, 1.0, -1.0)


def _paint(place):
    """Brightness of the object's octants.

    Two tones make rotation visible; the tones repeat after half a turn, so one octant
    is darker than all others and makes every point unique.
    """
    tone = jnp.where(place[0] * place[2] * (place[1] + 0.15) > 0, 1.0, 0.64)
    mark = (place[0] > 0) & (place[2] < 0) & (place[1] > -0.15)
    return jnp.where(mark, 0.42, tone)


def _light(hit, now, scene):
    """Lights the surfaces: ambient, one distant light with cast shadows, sky."""
    above = [hit.point[i] + 0.05 * hit.normal[i] for i in range(3)]
    dark = jnp.zeros(hit.depth.shape, bool)
    for k in range(MAX_OBJECTS):
        radius = scene.radius[k]
        offset = [above[i] - now.position[k, i] for i in range(3)]
        height = _dot(offset, _LIGHT)
        aside = _dot(offset, offset) - height * height
        covered = (aside < (0.95 * radius) ** 2) & (height < -0.5 * radius)
        dark = dark | (covered & scene.active[k])
    lambert = jnp.maximum(_dot(hit.normal, _LIGHT), 0.0) * jnp.where(dark, 0.25, 1.0)
    lit = 0.45 + 0.6 * lambert
    horizon = 1.0 - 0.25 * jnp.clip(hit.direction[1], -1.0, 1.0)
    solid = hit.depth < FAR
    surface = [jnp.where(solid, hit.color[i] * lit, _SKY[i] * horizon) for i in range(3)]
    return [jnp.clip(channel, 0.0, 1.0) for channel in surface]
