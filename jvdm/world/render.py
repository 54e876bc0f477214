"""Analytic ray caster of the world: balls, boxes and cans on a tiled ground.

Vectors are triples of `[h, w]` arrays and objects are unrolled in Python, without a
gather or an argmin: XLA then fuses a whole frame into few kernels, which is what makes
rendering inside a training step cheap. On a Hopper GPU one kernel draws frames, of the
same functions: poses and scenes are read as `x[k][i]`, so that they may be nested lists.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float, Int
from jvdm.world.physics import Trajectory
from jvdm.world.scene import CAMERAS, MAX_OBJECTS, Scene, World
from pallas_kernels.attention.planned import refusal_of_triton

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
REACH = float(max(1.0, np.linalg.norm(_BOX_HALF), np.hypot(_CAN_RADIUS, 1.0)))
"""How far the surface of any shape is from its centre at most, in units of the radius."""

TILE = 16
"""Side in pixels of what a program of the kernel draws."""

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
    moments = instants(shot)
    if frames is not None:
        moments = jax.tree.map(lambda leaf: leaf[frames], moments)
    drawn: Any = _by_kernel if kernel_serves(world) else _by_xla
    return drawn(moments, shot.scene, world)


def kernel_serves(world: World) -> bool:
    """Returns whether frames of this size are drawn by the kernel here, on one Hopper GPU."""
    return not (refusal_of_triton() or world.height % TILE or world.width % TILE)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _by_kernel(moments, scene, world):
    from jvdm.world.render_triton import draw_tiles

    return draw_tiles(moments, scene, world)


@_by_kernel.defjvp
def _by_kernel_jvp(world, primals, tangents):
    return jax.jvp(functools.partial(_by_xla, world=world), primals, tangents)


def _by_xla(moments, scene, world):
    s, height, width = world.supersample, world.height, world.width

    def draw(now):
        return light(_cast(now, scene, (s * height, s * width)), now, scene)

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
    return jnp.stack(light(_cast(now, scene, size), now, scene), -1)


def shade_buffers(now: Instant, scene: Scene, size: tuple[int, int]) -> Buffers:
    """Returns `shade`'s colour with the geometry behind it."""
    hit = _cast(now, scene, size)
    rgb = light(hit, now, scene)
    seg = jnp.where((hit.slot == 0) & (hit.depth >= FAR), -1, hit.slot)
    local = hit.point
    for k in range(MAX_OBJECTS):
        here = seg == k + 1
        own = into_object(now.rotation[k], [hit.point[i] - now.position[k, i] for i in range(3)])
        local = [jnp.where(here, own[i], local[i]) for i in range(3)]
    stacked = [jnp.stack(triple, -1) for triple in (rgb, hit.normal, hit.point, local)]
    depth = jnp.minimum(hit.depth, FAR)
    return Buffers(stacked[0], depth, seg, stacked[1], stacked[2], stacked[3])


class Hit(NamedTuple):
    """First surface along each ray, as triples of images."""

    depth: Array  # Along the forward axis; _NOTHING for the sky.
    direction: list[Array]
    point: list[Array]
    normal: list[Array]
    color: list[Array]
    slot: Array  # That of the object plus one; 0 where there is none.


def _cast(now, scene, size):
    height, width = size
    places = jnp.arange(height)[:, None], jnp.arange(width)[None]
    return cast(now, scene, tones(scene), rays(now.camera, size, *places))


def cast(
    now: Instant,
    scene: Scene,
    tones: Float[Array, "K 3"] | list,
    direction: list[Array],
    change: Callable[..., Any] = lambda k, closer, found: closer(found),
) -> Hit:
    """Finds the first surface and its unlit colour.

    Args:
        now: Camera and poses.
        scene: Of which `active`, `shape` and `radius` are read.
        tones: See `tones`.
        direction: Of each ray, see `rays`.
        change: `(k, closer, found)` returns `closer(found)`: what rays have found, now that
            they were cast at object `k`. It may return `found` if no ray can hit the object.
    """
    eye = [now.camera.eye[i] for i in range(3)]
    downward = jnp.minimum(direction[1], -1e-4)
    depth = jnp.where(direction[1] < -1e-4, -eye[1] / downward, _NOTHING)
    depth = jnp.where(depth < FAR, depth, _NOTHING)
    tile = _tiles(eye[0] + depth * direction[0], eye[2] + depth * direction[2], depth)
    zero = jnp.zeros(depth.shape)

    def closer(k, found):
        depth, normal, color, slot = found
        turn, shape, radius = now.rotation[k], scene.shape[k], scene.radius[k]
        start = into_object(turn, [eye[i] - now.position[k][i] for i in range(3)])
        along = into_object(turn, direction)
        reach = intersect(start, along, shape, radius)
        first = (reach > 1e-3) & (reach < depth) & scene.active[k]
        place = [(start[i] + reach * along[i]) / radius for i in range(3)]
        outward = out_of_object(turn, _local_normal(place, shape))
        paint = _paint(place)
        return (
            jnp.where(first, reach, depth),
            [jnp.where(first, outward[i], normal[i]) for i in range(3)],
            [jnp.where(first, tones[k][i] * paint, color[i]) for i in range(3)],
            jnp.where(first, k + 1, slot),
        )

    found = depth, [zero, zero + 1.0, zero], [tile] * 3, jnp.zeros(depth.shape, jnp.int32)
    for k in range(MAX_OBJECTS):
        found = change(k, functools.partial(closer, k), found)
    depth, normal, color, slot = found
    point = [eye[i] + depth * direction[i] for i in range(3)]
    return Hit(depth, direction, point, normal, color, slot)


def tones(scene: Scene) -> Float[Array, "K 3"]:
    """Returns the surface colour of each object."""
    return jnp.asarray(PALETTE)[scene.color]


def rays(camera: Camera, size: tuple[int, int], row: Array, column: Array) -> list[Array]:
    """Directions through the pixel centres, of unit length along the forward axis.

    Args:
        camera: That of one frame.
        size: Height and width of the image.
        row: Pixels, counted from the top.
        column: Pixels, counted from the left.
    """
    down, right = slopes(camera, size, row, column)
    basis = camera.basis
    return [right * basis[0][i] + down * basis[1][i] + basis[2][i] for i in range(3)]


def slopes(camera: Camera, size: tuple[int, int], row: Array, column: Array) -> tuple[Array, Array]:
    """How far down and right rays go on their way of unit length forwards, see `rays`."""
    unit = 2.0 / (min(size) * camera.focal)
    return (row + 0.5 - size[0] / 2) * unit, (column + 0.5 - size[1] / 2) * unit


def into_object(rotation: Float[Array, "3 3"] | list, vector: list) -> list:
    """Turns the components of a triple of arrays from world to object axes."""
    return [sum(rotation[j][i] * vector[j] for j in range(3)) for i in range(3)]


def out_of_object(rotation: Float[Array, "3 3"] | list, vector: list) -> list:
    """Turns the components of a triple of arrays from object to world axes."""
    return [sum(rotation[i][j] * vector[j] for j in range(3)) for i in range(3)]


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


def light(hit: Hit, now: Instant, scene: Scene) -> list[Array]:
    """Lights the surfaces: ambient, one distant light with cast shadows, sky."""
    above = [hit.point[i] + 0.05 * hit.normal[i] for i in range(3)]
    dark = jnp.zeros(hit.depth.shape, bool)
    for k in range(MAX_OBJECTS):
        radius = scene.radius[k]
        offset = [above[i] - now.position[k][i] for i in range(3)]
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
