"""The procedural world: what a clip may contain, and how a scene is drawn from a seed.

A scene is a small tree of numbers. `jvdm.world.physics` moves it, `jvdm.world.render`
draws it, and the predicates below say in words what happened: they read the simulated
positions, never the intention, so a caption built from them cannot be false.
"""

import dataclasses
from typing import Literal, NamedTuple, TypedDict, Unpack, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Bool, Float, Int, Key
from jvdm.errors import ConfigError
from jvdm.keys import named

COLORS = ("red", "green", "blue", "yellow", "purple", "cyan", "orange")
SHAPES = ("ball", "box", "can")
SIZES = ("small", "large")
VERBS = ("rests", "moves left", "moves right", "comes closer", "moves away", "drops", "wanders")
SPEEDS = ("none", "slow", "fast")
CAMERAS = ("static", "pan left", "pan right", "orbit left", "orbit right", "zoom in", "zoom out")
PROGRAMMES = ("rest", "left", "right", "closer", "away", "drop")
"""What an object is meant to do; what it does is a verb."""

MAX_OBJECTS = 3
RADII = (0.42, 0.66)
ARENA = (2.1, 1.6)
"""Half extents in x and z; an object's surface stays inside."""

REFERENCE_SECONDS = 33 / 12
"""Duration in which an object covers its drawn distance."""

FRICTION = 0.35
"""Rate in 1/s at which sliding boxes and cans lose speed."""

HELD_OUT_PAIRS = (("yellow", "ball"), ("purple", "box"), ("cyan", "can"))
HELD_OUT_MOTIONS = (("drops", "orbit right"), ("comes closer", "zoom out"))

Split = Literal["train", "val", "test", "reader", "reader_val", "vae", "vae_val", "preview"]
SPLITS: tuple[str, ...] = get_args(Split)
HeldOut = Literal["never", "only", "any"]

# Start cells: two large objects in neighbouring cells just do not touch.
_CELL_X = np.array([-1.36, 0.0, 1.36, -1.36, 0.0, 1.36], np.float32)
_CELL_Z = np.array([-0.75, -0.75, -0.75, 0.65, 0.65, 0.65], np.float32)
# Horizontal speeds (units/s) between these two are called neither slow nor fast.
_SLOW, _FAST = (0.15, 0.46), 0.52


@dataclasses.dataclass(frozen=True)
class World:
    """How finely the world is simulated and drawn; its contents do not depend on it.

    Args:
        height: Pixels of a frame from top to bottom.
        width: Pixels of a frame from left to right.
        num_frames: Frames of a clip; the camera programme spans the whole clip.
        fps: Frames per second of simulated time.
        supersample: Rays per pixel and axis.
        substeps: Physics steps per frame; `1 / (fps * substeps)` is the time step.
        gravity: Downward acceleration in units/s^2.

    Raises:
        ConfigError: If a count or rate is not positive.
    """

    height: int = 128
    width: int = 128
    num_frames: int = 33
    fps: float = 12.0
    supersample: int = 2
    substeps: int = 6
    gravity: float = 9.8

    def __post_init__(self) -> None:
        for name in ("height", "width", "num_frames", "fps", "supersample", "substeps"):
            if getattr(self, name) <= 0:
                raise ConfigError(
                    f"World {name} is {getattr(self, name)}", "it must be positive", "raise it"
                )


class Scene(NamedTuple):
    """The start of a clip; every field but `camera` has one entry per object slot.

    Units: the ground is y = 0, x points right and z towards the camera.
    """

    active: Bool[Array, " K"]
    shape: Int[Array, " K"]
    size: Int[Array, " K"]
    color: Int[Array, " K"]
    radius: Float[Array, " K"]
    position: Float[Array, "K 3"]
    velocity: Float[Array, "K 3"]
    rotation: Float[Array, "K 3 3"]
    yaw_rate: Float[Array, " K"]
    camera: Int[Array, ""]


class Facts(NamedTuple):
    """What is true of a clip: labels index the name tuples of this module.

    `verb` and `speed` describe the whole clip; `verb_labels` and `speed_labels` give
    them for a part of it. Labels of inactive slots are 0.
    """

    active: Bool[Array, " K"]
    shape: Int[Array, " K"]
    size: Int[Array, " K"]
    color: Int[Array, " K"]
    verb: Int[Array, " K"]
    speed: Int[Array, " K"]
    camera: Int[Array, ""]
    position: Float[Array, "T K 3"]
    velocity: Float[Array, "T K 3"]


class SceneOptions(TypedDict, total=False):
    """What is fixed instead of drawn.

    Keys: `held_out` is `"never"` (no held-out colour and shape: the default), `"only"`
    (object 0 has a held-out pair, the others do not) or `"any"` (no rule, neither for
    pairs nor for motions); `num_objects` 1..3, else drawn with chances .4, .4, .2;
    `camera` an index of `CAMERAS`, else static with chance .4, the others .1 each;
    `programme` an index of `PROGRAMMES` for object 0.
    """

    held_out: str
    num_objects: int | Int[Array, ""] | None
    camera: int | Int[Array, ""] | None
    programme: int | Int[Array, ""] | None


def scene_key(split: str, index: int | Int[Array, ""]) -> Key:
    """Returns the random key of clip `index` of a split; splits share no key.

    Raises:
        ConfigError: If there is no such split.
    """
    if split not in SPLITS:
        raise ConfigError(f"split {split!r} does not exist", f"splits are {', '.join(SPLITS)}")
    return jax.random.fold_in(named(jax.random.key(0), split), index)


def held_out_pairs() -> np.ndarray:
    """Returns the bool table `[color, shape]` of pairs that training never shows."""
    return _table(HELD_OUT_PAIRS, COLORS, SHAPES)


def held_out_motions() -> np.ndarray:
    """Returns the bool table `[verb, camera]` of pairs that training never shows."""
    return _table(HELD_OUT_MOTIONS, VERBS, CAMERAS)


def _table(pairs, rows, columns):
    """Marks pairs of names in a table of all."""
    return np.array([[(row, column) in pairs for column in columns] for row in rows])


def sample_scene(key: Key, **options: Unpack[SceneOptions]) -> Scene:
    """Draws a scene: looks, start cells, motion programmes and camera.

    Args:
        key: Key of the clip.
        **options: See `SceneOptions`; of `held_out`, only the rule for colours and shapes
            applies here.

    Raises:
        ConfigError: If `held_out` is not one of its three values.
    """
    draw = _draws(key)
    num_objects, camera = options.get("num_objects"), options.get("camera")
    if num_objects is None:
        num_objects = 1 + (draw["count"][0] > 0.4) + (draw["count"][0] > 0.8)
    if camera is None:
        camera = jnp.clip(jnp.floor((draw["camera"][0] - 0.3) * 10), 0, len(CAMERAS) - 1)
    color, shape = _looks(draw, options.get("held_out", "never"))
    size = _choice(draw["size"], len(SIZES))
    radius = jnp.asarray(RADII)[size]
    motion = _motions(draw, options.get("programme"))
    fast = draw["fast"] < 0.5
    position = _starts(draw, motion, fast, radius)
    return Scene(
        active=jnp.arange(MAX_OBJECTS) < num_objects,
        shape=shape,
        size=size,
        color=color,
        radius=radius,
        position=position,
        velocity=_velocities(draw, motion, fast, position, radius, shape),
        rotation=yaw_matrix(draw["yaw"] * (2 * np.pi)),
        yaw_rate=jnp.where(motion > 0, 3.0 * draw["turn"] - 1.5, 0.0),
        camera=jnp.asarray(camera).astype(jnp.int32),
    )


def yaw_matrix(angle: Float[Array, " K"]) -> Float[Array, "K 3 3"]:
    """Returns the rotations by `angle` radians about the vertical axis."""
    cos, sin, zero, one = jnp.cos(angle), jnp.sin(angle), 0 * angle, 0 * angle + 1
    rows = ((cos, zero, sin), (zero, one, zero), (-sin, zero, cos))
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


# Uniform numbers per object slot. A new name goes to the end, or every clip changes.
_DRAWS = (
    *("count", "camera", "shape", "other shape", "size", "motion", "still", "fast", "height"),
    *("jitter x", "jitter z", "distance", "drift x", "drift z", "yaw", "turn", "pair"),
)


def _draws(key):
    """Draws all uniform numbers of a scene in one call, which compiles much faster than many.

    Returns one `[K]` array per name, `cells [K, 6]` and `colors [7]`.
    """
    shapes = {"colors": (len(COLORS),), "cells": (MAX_OBJECTS, len(_CELL_X))}
    shapes |= {name: (MAX_OBJECTS,) for name in _DRAWS}
    ends = np.cumsum([np.prod(shape) for shape in shapes.values()])
    parts = jnp.split(jax.random.uniform(key, (int(ends[-1]),)), [int(end) for end in ends[:-1]])
    return {name: part.reshape(shapes[name]) for name, part in zip(shapes, parts, strict=True)}


def _choice(uniform, count):
    """Turns uniform numbers into equally likely integers below `count`."""
    return jnp.minimum(jnp.floor(uniform * count), count - 1).astype(jnp.int32)


def _looks(draw, held_out):
    """Chooses colours without repeats and shapes, and applies the rule for held-out pairs."""
    if held_out not in get_args(HeldOut):
        raise ConfigError(f"held_out is {held_out!r}", "it must be 'never', 'only' or 'any'")
    color = jnp.argsort(draw["colors"])[:MAX_OBJECTS].astype(jnp.int32)
    shape = _choice(draw["shape"], len(SHAPES))
    if held_out == "any":
        return color, shape
    pairs = jnp.asarray([(COLORS.index(c), SHAPES.index(s)) for c, s in HELD_OUT_PAIRS])
    wanted = pairs[_choice(draw["pair"][0], len(HELD_OUT_PAIRS))]
    if held_out == "only":
        color = jnp.where(color == wanted[0], color[0], color).at[0].set(wanted[0])
    # Each colour has at most one held-out shape, so either other shape is allowed.
    forbidden = jnp.asarray(held_out_pairs())[color, shape]
    other = 1 + _choice(draw["other shape"], len(SHAPES) - 1)
    shape = jnp.where(forbidden, (shape + other) % len(SHAPES), shape)
    return color, (shape.at[0].set(wanted[1]) if held_out == "only" else shape)


def _motions(draw, programme):
    """Chooses the motion programmes; later objects rest half of the time."""
    still = (draw["still"] < 0.5) & (jnp.arange(MAX_OBJECTS) > 0)
    motion = jnp.where(still, 0, _choice(draw["motion"], len(PROGRAMMES)))
    return motion if programme is None else motion.at[0].set(programme)


def _starts(draw, motion, fast, radius):
    """Chooses distinct start cells that leave room for the motion, and heights."""
    edge = jnp.where(fast, 1.0, -0.5)  # A fast object needs the whole width of the arena.
    anywhere = jnp.ones(len(_CELL_X), bool)
    taken, cells = jnp.zeros(len(_CELL_X)), []
    for k in range(MAX_OBJECTS):
        room = (anywhere, edge[k] < _CELL_X, -edge[k] > _CELL_X, _CELL_Z < 0, _CELL_Z > 0, anywhere)
        score = draw["cells"][k] + 50.0 * jnp.stack(room)[motion[k]] - taken
        cell = jnp.argmax(score)
        taken = taken.at[cell].add(1e4)
        cells.append(cell)
    cell = jnp.stack(cells)
    spread = jnp.where(radius > 0.5, 0.03, 0.15)
    x = jnp.asarray(_CELL_X)[cell] + spread * (2 * draw["jitter x"] - 1)
    z = jnp.asarray(_CELL_Z)[cell] + spread * (2 * draw["jitter z"] - 1)
    drop = jnp.where(motion == PROGRAMMES.index("drop"), 0.8 + 0.7 * draw["height"], 0.0)
    return jnp.stack([x, radius + drop, z], -1)


def _velocities(draw, motion, fast, position, radius, shape):
    """Start velocities that cover a drawn slow or fast distance before the wall."""
    distance = draw["distance"] * jnp.where(fast, 0.7, 0.5) + jnp.where(fast, 1.5, 0.7)
    x, z = position[:, 0], position[:, 2]
    limit_x, limit_z = ARENA[0] - radius, ARENA[1] - radius
    room = (0 * x, limit_x + x, limit_x - x, limit_z - z, limit_z + z, 0 * x)
    distance = jnp.minimum(distance, jnp.stack(room)[motion, jnp.arange(MAX_OBJECTS)] - 0.02)
    decay = FRICTION * REFERENCE_SECONDS
    slide = jnp.where(shape == SHAPES.index("ball"), 1.0, decay / (1 - np.exp(-decay)))
    speed = distance * slide / REFERENCE_SECONDS
    drift = jnp.where(motion > 0, 0.1, 0.0)
    drift_x, drift_z = drift * (2 * draw["drift x"] - 1), drift * (2 * draw["drift z"] - 1)
    vx = jnp.where(motion == 1, -speed, jnp.where(motion == 2, speed, drift_x))
    vz = jnp.where(motion == 3, speed, jnp.where(motion == 4, -speed, drift_z))
    return jnp.stack([vx, 0 * vx, vz], -1)


def verb_labels(
    position: Float[Array, "T K 3"],
    fps: float,
    start: int | Int[Array, ""] = 0,
    stop: int | Int[Array, ""] | None = None,
) -> Int[Array, " K"]:
    """Says what each object does in the frames `start <= t < stop`: an index of `VERBS`.

    Thresholds hold for 33 frames at 12 fps and shrink in proportion for shorter
    windows, so a slow object is not said to rest because the window is short.

    Args:
        position: Simulated positions of the whole clip.
        fps: Frames per second of `position`.
        start: First frame of the window; may be traced.
        stop: First frame after the window; None is the end of the clip.
    """
    stop = position.shape[0] if stop is None else stop
    inside = _inside(position.shape[0], start, stop)
    scale = jnp.minimum(1.0, (jnp.asarray(stop) - start) / fps / REFERENCE_SECONDS)
    move = position[jnp.asarray(stop) - 1] - position[jnp.asarray(start)]
    dx, dz = move[:, 0] / scale, move[:, 2] / scale
    ax, az = jnp.abs(dx), jnp.abs(dz)
    path = _path(position, start, stop).sum(0) / scale
    still = (ax < 0.25) & (az < 0.25) & (path < 0.5)
    verb = jnp.where(still, VERBS.index("rests"), VERBS.index("wanders"))
    toward = jnp.where(dz > 0, VERBS.index("comes closer"), VERBS.index("moves away"))
    verb = jnp.where((az > 0.45) & (az > 1.5 * ax), toward, verb)
    sideways = jnp.where(dx < 0, VERBS.index("moves left"), VERBS.index("moves right"))
    verb = jnp.where((ax > 0.45) & (ax > 1.5 * az), sideways, verb)
    height = position[:, :, 1]
    peak = jax.lax.cummax(jnp.where(inside, height, -jnp.inf))
    fall = jnp.where(inside, peak - height, 0.0).max(0) / scale
    return jnp.where(fall > 0.4, VERBS.index("drops"), verb).astype(jnp.int32)


def speed_labels(
    position: Float[Array, "T K 3"],
    fps: float,
    start: int | Int[Array, ""] = 0,
    stop: int | Int[Array, ""] | None = None,
) -> Int[Array, " K"]:
    """Labels the mean horizontal speed in `start <= t < stop`: an index of `SPEEDS`.

    Speeds between slow and fast, and objects that hardly move, are 0 ("none").
    """
    stop = position.shape[0] if stop is None else stop
    steps = jnp.maximum(jnp.asarray(stop) - start - 1, 1)
    speed = _path(position, start, stop).sum(0) * fps / steps
    slow = (speed > _SLOW[0]) & (speed < _SLOW[1])
    return jnp.where(slow, 1, jnp.where(speed > _FAST, 2, 0)).astype(jnp.int32)


def _inside(num_frames, start, stop):
    """Mask `[T, 1]` of the frames of a window."""
    frame = jnp.arange(num_frames)[:, None]
    return (frame >= start) & (frame < stop)


def _path(position, start, stop):
    """Horizontal distance `[T - 1, K]` from each frame of the window to its next one."""
    step = position[1:, :, ::2] - position[:-1, :, ::2]
    length = jnp.sqrt((step**2).sum(-1))
    return jnp.where(_inside(position.shape[0] - 1, start, jnp.asarray(stop) - 1), length, 0.0)
