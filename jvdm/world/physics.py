"""Motion of the world's objects: gravity, bounces, walls, collisions, rolling."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Bool, Float
from jvdm.world.scene import ARENA, FRICTION, MAX_OBJECTS, SHAPES, Scene, World

_BOUNCE = (0.8, 0.45)  # Share of speed kept by a ball, by anything else.
_WALL_BOUNCE = 0.8
# Slower impacts end a bounce: below, the ground's correction of the depth of one step
# would give back more energy than the bounce takes.
_REST_SPEED = 0.8


class Trajectory(NamedTuple):
    """Object states at each frame, and contact impulses until the next frame.

    `rotation` turns object coordinates into world coordinates. Impulses are changes of
    speed in units/s, summed over the substeps; `pair_impulse[t, i, j]` is what object
    `i` got from object `j`.
    """

    position: Float[Array, "T K 3"]
    rotation: Float[Array, "T K 3 3"]
    velocity: Float[Array, "T K 3"]
    ground_impulse: Float[Array, "T K"]
    wall_impulse: Float[Array, "T K"]
    pair_impulse: Float[Array, "T K K"]


class Commands(NamedTuple):
    """What is done to objects from outside, before each frame becomes the next one.

    Attributes:
        given: Where the horizontal velocity is set.
        velocity: Its x and z in units/s.
    """

    given: Bool[Array, "T K"]
    velocity: Float[Array, "T K 2"]


def simulate(
    scene: Scene,
    world: World,
    num_frames: int | None = None,
    commands: Commands | None = None,
) -> Trajectory:
    """Moves a scene: a scan over frames of a scan over substeps.

    Boxes and cans only turn about the vertical and balls roll without slipping, so
    contacts need no torque. All contacts are those of spheres of the object's radius.

    Args:
        scene: The state at frame 0.
        world: Frame rate, substeps and gravity.
        num_frames: Frames to record; None is `world.num_frames`.
        commands: What is done to objects, for as many frames; None is nothing.
    """
    dt = 1.0 / (world.fps * world.substeps)
    # A turn of a loop starts kernels: 64 clips take an H200 2.07 ms unrolled, 3.58 otherwise.
    unroll = world.substeps if jax.default_backend() == "gpu" else 1

    def substep(state, _):
        return _substep(scene, state, world.gravity, dt)

    def frame(state, command):
        position, velocity, rotation = state
        if command is not None:
            x, z = (
                jnp.where(command.given, command.velocity[:, i], velocity[:, 2 * i]) for i in (0, 1)
            )
            state = (position, jnp.stack([x, velocity[:, 1], z], -1), rotation)
        after, impulses = jax.lax.scan(substep, state, None, world.substeps, unroll=unroll)
        summed = [impulse.sum(0) for impulse in impulses]
        return after, Trajectory(position, rotation, velocity, *summed)

    start = (scene.position, scene.velocity, scene.rotation)
    length = world.num_frames if num_frames is None else num_frames
    return jax.lax.scan(frame, start, commands, length=length)[1]


def _substep(scene, state, gravity, dt):
    """Semi-implicit Euler step, then contacts; free flight is an exact parabola."""
    position, velocity, rotation = state
    velocity = velocity.at[:, 1].add(-gravity * dt)
    position = position + dt * velocity
    position, velocity, ground = _ground(scene, position, velocity, dt)
    velocity, wall = _walls(scene, position, velocity)
    velocity, pair = _pairs(scene, position, velocity)
    ball = (scene.shape == SHAPES.index("ball"))[:, None]
    zero = jnp.zeros(MAX_OBJECTS)
    roll = jnp.stack([velocity[:, 2], zero, -velocity[:, 0]], -1) / scene.radius[:, None]
    spin = jnp.where(ball, roll, jnp.stack([zero, scene.yaw_rate, zero], -1))
    rotation = _compose(_turn(spin, dt), rotation)
    return (position, velocity, rotation), (ground, wall, pair)


def _ground(scene, position, velocity, dt):
    """Bounce and sliding friction on the plane y = 0."""
    height, fall = position[:, 1], velocity[:, 1]
    ball = scene.shape == SHAPES.index("ball")
    hit = (height < scene.radius) & (fall < 0)
    keep = jnp.where(ball, _BOUNCE[0], _BOUNCE[1])
    change = jnp.where(fall > -_REST_SPEED, -fall, -(1 + keep) * fall)
    change = jnp.where(hit, change, 0.0)
    slide = jnp.where(hit & ~ball, 1 - FRICTION * dt, 1.0)
    velocity = velocity * jnp.stack([slide, jnp.ones_like(slide), slide], -1)
    velocity = velocity.at[:, 1].add(change)
    position = position.at[:, 1].set(jnp.maximum(height, scene.radius))
    # Resting contact only cancels gravity; it is no event.
    return position, velocity, jnp.where(fall > -_REST_SPEED, 0.0, change) * scene.active


def _walls(scene, position, velocity):
    """Invisible walls keep the objects in the arena."""
    impulse = jnp.zeros(MAX_OBJECTS)
    for axis, half in zip((0, 2), ARENA, strict=True):
        limit = half - scene.radius
        place, speed = position[:, axis], velocity[:, axis]
        out = ((place > limit) & (speed > 0)) | ((place < -limit) & (speed < 0))
        velocity = velocity.at[:, axis].set(jnp.where(out, -_WALL_BOUNCE * speed, speed))
        impulse = impulse + jnp.where(out, (1 + _WALL_BOUNCE) * jnp.abs(speed), 0.0)
    return velocity, impulse * scene.active


def _pairs(scene, position, velocity):
    """Central impulses between touching objects; mass goes with the cube of the radius."""
    apart = position[:, None] - position[None]
    distance = jnp.sqrt((apart**2).sum(-1) + 1e-12)
    normal = apart / distance[..., None]
    closing = ((velocity[:, None] - velocity[None]) * normal).sum(-1)
    both = scene.active[:, None] & scene.active[None] & ~jnp.eye(MAX_OBJECTS, dtype=bool)
    reach = scene.radius[:, None] + scene.radius[None]
    touch = both & (distance < reach) & (closing < 0)
    mass = scene.radius**3
    share = mass[None] / (mass[:, None] + mass[None])
    change = jnp.where(touch, -(1 + _WALL_BOUNCE) * closing * share, 0.0)
    return velocity + (change[..., None] * normal).sum(1), change


def _turn(spin, dt):
    """Rotation matrices of the angular velocities `spin [K, 3]` after `dt` (Rodrigues)."""
    rate = jnp.sqrt((spin**2).sum(-1, keepdims=True) + 1e-12)
    x, y, z = jnp.moveaxis(spin / rate, -1, 0)
    angle = (rate * dt)[..., None]
    zero = jnp.zeros_like(x)
    rows = ((zero, -z, y), (z, zero, -x), (-y, x, zero))
    cross = jnp.stack([jnp.stack(row, -1) for row in rows], -2)
    turn = jnp.sin(angle) * cross + (1 - jnp.cos(angle)) * _compose(cross, cross)
    return jnp.eye(3)[None] + turn


def _compose(a, b):
    """Matrix product in full float32; `@` may round to TF32, which 200 steps would show."""
    return (a[..., :, :, None] * b[..., None, :, :]).sum(-2)
