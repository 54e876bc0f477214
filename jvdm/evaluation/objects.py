"""Count and permanence of objects, and what they do, from the tracks of the hue reader.

The generator's ground truth is unknown; what is known is the caption. An object may be
out of the frame or hidden, and then it is right that it is not seen. So the rules judge
events: an object may go out of sight, or come into sight, only where an edge of the
frame or another object can explain it.
"""

from typing import NamedTuple

import jax.numpy as jnp

from jvdm.arrays import Array, Bool, Float, Int
from jvdm.evaluation.hue import GRID, Tracks
from jvdm.world.render import camera_path
from jvdm.world.scene import RADII, VERBS, Facts

GRAVITY = 9.8

# Thresholds in cells (2 pixels at 128) and frames of 1/12 s. On true clips free objects
# move 6.1 cells and change their area by a factor of 1.17 from frame to frame at most.
_MAX_STEP, _MAX_STEP_OCCLUDED = 9.0, 14.0
_MAX_AREA_RATIO = 1.5
_MAX_LAST_AREA = 0.6  # Of its largest area, in the frame before it hides.
STRAY_AREA, _STRAY_SHARE = 12.0, 0.1
# Of 3,900 free silhouettes of true clips none was below .883 or above 1.57.
_MIN_CONVEXITY, _MAX_ELONGATION, _FUSED_AREA, _FUSED_SHARE = 0.84, 1.65, 30.0, 0.1


class Permanence(NamedTuple):
    """What went wrong with the objects of each clip.

    Attributes:
        lost: A named colour is never seen, or goes out of sight in the open.
        created: A colour comes into sight in the open, a further piece of a colour
            comes or goes, or a colour that is not named comes or goes.
        jumped: A centre moves further than objects can within a frame.
        resized: An area changes suddenly while nothing hides the object.
    """

    lost: Bool[Array, " B"]
    created: Bool[Array, " B"]
    jumped: Bool[Array, " B"]
    resized: Bool[Array, " B"]

    @property
    def kept(self) -> Bool[Array, " B"]:
        """Whether nothing went wrong; swapped colours are two jumps."""
        return ~(self.lost | self.created | self.jumped | self.resized)


def color_set_right(tracks: Tracks, active: Bool[Array, "B K"]) -> Bool[Array, " B"]:
    """Every named colour is seen in a quarter of the frames, and no other colour is."""
    seen = (tracks.pieces > 0).mean(1)
    other = (tracks.stray > STRAY_AREA).mean(1)
    return jnp.where(active, seen > 0.25, True).all(-1) & (other < 0.25)


def count_right(tracks: Tracks, active: Bool[Array, "B K"]) -> Bool[Array, " B"]:
    """In every frame each named colour is one piece, or hidden for a visible reason.

    Wrong are clips with two pieces of a colour in any frame, with a piece that is two
    objects or with a colour that is not named in a tenth of the frames, with a named
    colour that is never seen, and with one that goes out of sight, or comes into sight,
    where nothing explains it.
    """
    gone, come = _unexplained(tracks)
    double = (tracks.pieces > 1).any((1, 2)) | fused(tracks)
    return ~(double | gone.any(-1) | come.any(-1) | _never_seen(tracks, active) | _stray(tracks))


def fused(tracks: Tracks) -> Bool[Array, " B"]:
    """An object that nothing hides has no object's outline: two in one, or deformed."""
    free = (tracks.pieces == 1) & ~_hindered(tracks) & (tracks.area > _FUSED_AREA)
    odd = (tracks.convexity < _MIN_CONVEXITY) | (tracks.elongation > _MAX_ELONGATION)
    return ((free & odd).mean(1) > _FUSED_SHARE).any(-1)


def permanence(tracks: Tracks, active: Bool[Array, "B K"], fps: float = 12.0) -> Permanence:
    """Looks for objects that are lost, created, moved or resized without a cause.

    A second piece that is there in all frames is an error of count, not of permanence.
    """
    gone, come = _unexplained(tracks)
    seen = tracks.pieces > 0
    double = tracks.pieces > 1
    partly = double.any(1) & (seen & ~double).any(1)
    single = tracks.pieces == 1
    both = single[:, 1:] & single[:, :-1]
    hindered = _hindered(tracks)
    hindered = hindered[:, 1:] | hindered[:, :-1]
    step = jnp.linalg.norm(tracks.center[:, 1:] - tracks.center[:, :-1], axis=-1)
    far = step * (fps / 12.0) > jnp.where(hindered, _MAX_STEP_OCCLUDED, _MAX_STEP)
    area = jnp.maximum(tracks.area, 1.0)
    ratio = jnp.abs(jnp.log(area[:, 1:] / area[:, :-1]))
    sudden = ~hindered & (ratio * (fps / 12.0) > jnp.log(_MAX_AREA_RATIO))
    stray = tracks.stray > STRAY_AREA
    return Permanence(
        lost=gone.any(-1) | _never_seen(tracks, active),
        created=come.any(-1) | partly.any(-1) | (_stray(tracks) & ~stray.all(1)),
        jumped=(both & far).any((1, 2)),
        resized=(both & sudden).any((1, 2)),
    )


def _hindered(tracks: Tracks) -> Bool[Array, "B T K"]:
    """An edge of the frame or another object is close enough to hide something."""
    return tracks.at_border | tracks.at_other


def _never_seen(tracks: Tracks, active: Bool[Array, "B K"]) -> Bool[Array, " B"]:
    return (active & ~(tracks.pieces > 0).any(1)).any(-1)


def _stray(tracks: Tracks) -> Bool[Array, " B"]:
    return (tracks.stray > STRAY_AREA).mean(1) > _STRAY_SHARE


def _unexplained(tracks: Tracks) -> tuple[Bool[Array, "B K"], Bool[Array, "B K"]]:
    """Whether a colour ever goes, or comes, where nothing can hide it.

    What goes behind something or out of the frame is partly hidden in its last frame:
    it is beside the occluder or the edge, and smaller than it has been.
    """
    seen = tracks.pieces > 0
    small = tracks.area <= _MAX_LAST_AREA * tracks.area.max(1, keepdims=True)
    explained = _hindered(tracks) & small
    goes = seen[:, :-1] & ~seen[:, 1:] & ~explained[:, :-1]
    comes = ~seen[:, :-1] & seen[:, 1:] & ~explained[:, 1:]
    return goes.any(1), comes.any(1)


def sideways_shift(tracks: Tracks) -> Float[Array, "B K"]:
    """Columns that each object moves from the first to the last sixth of the clip, in cells."""
    length = max(1, tracks.area.shape[1] // 6)
    seen = (tracks.pieces > 0).astype(jnp.float32)
    column = tracks.center[..., 1]

    def mean(part: slice) -> Array:
        weight = seen[:, part]
        return (column[:, part] * weight).sum(1) / jnp.maximum(weight.sum(1), 1.0)

    return mean(slice(-length, None)) - mean(slice(0, length))


def direction_right(tracks: Tracks, facts: Facts) -> tuple[Array, Array]:
    """Objects that move left or right do so in the image, by 3 cells or more.

    Returns:
        Right and counted, bool `[B, K]`: counted are sideways moves that are seen at
        both ends of the clip, under a static camera.
    """
    shift = sideways_shift(tracks)
    left = facts.verb == VERBS.index("moves left")
    sideways = left | (facts.verb == VERBS.index("moves right"))
    seen = tracks.pieces > 0
    length = max(1, seen.shape[1] // 6)
    ends = seen[:, :length].any(1) & seen[:, -length:].any(1)
    counted = facts.active & sideways & ends & (facts.camera == 0)[:, None]
    return jnp.where(left, shift < -3.0, shift > 3.0), counted


def mean_speed(tracks: Tracks) -> Float[Array, "B K"]:
    """Mean movement of each centre over the frames where it is seen, in cells per frame."""
    single = tracks.pieces == 1
    both = (single[:, 1:] & single[:, :-1]).astype(jnp.float32)
    step = jnp.linalg.norm(tracks.center[:, 1:] - tracks.center[:, :-1], axis=-1)
    return (step * both).sum(1) / jnp.maximum(both.sum(1), 1.0)


def relation_right(tracks: Tracks, facts: Facts, wanted: Int[Array, " B"]) -> tuple[Array, Array]:
    """How object 0 stands to object 1 in the first frames, against what was said.

    Args:
        tracks: Tracks of the clips.
        facts: What was said of the clips.
        wanted: Index of `jvdm.world.phrases.RELATIONS` (left, right, behind, in front)
            of object 0 as seen from object 1; -1 where nothing was said.

    Returns:
        Right and counted, bool `[B]`: counted are said relations between two objects
        that are both seen in the first three frames. What stands in front has its
        lower edge lower in the image, which does not hold for what is in the air:
        depths of dropping objects are not counted.
    """
    seen = (tracks.pieces[:, :3, :2] > 0).astype(jnp.float32)
    weight = seen / jnp.maximum(seen.sum(1, keepdims=True), 1.0)
    column = (tracks.center[:, :3, :2, 1] * weight).sum(1)
    lower = tracks.center[:, :3, :2, 0] + tracks.extent[:, :3, :2, 0] / 2
    bottom = (lower * weight).sum(1)
    aside, below = column[:, 0] - column[:, 1], bottom[:, 0] - bottom[:, 1]
    answers = jnp.stack([aside < 0, aside > 0, below < 0, below > 0], -1)
    right = jnp.take_along_axis(answers, jnp.maximum(wanted, 0)[:, None], -1)[:, 0]
    airborne = (facts.verb[:, :2] == VERBS.index("drops")).any(-1)
    said = (wanted >= 0) & ~((wanted >= 2) & airborne)
    return right, said & seen.any(1).all(-1)


class Gravity(NamedTuple):
    """Free fall of each object, where it can be measured.

    Attributes:
        ratio: Acceleration over the world's.
        residual: Root mean square distance from the fitted parabola, over the way fallen.
        valid: The object drops under a static camera, and is seen whole in its flight.
    """

    ratio: Float[Array, "B K"]
    residual: Float[Array, "B K"]
    valid: Bool[Array, "B K"]


def gravity_fit(tracks: Tracks, facts: Facts, fps: float = 12.0) -> Gravity:
    """Fits a parabola to the height of dropping objects until they first rise.

    The static camera is known. Where an object is lowest in the image it touches the
    ground: this gives its distance, and the distance turns rows into heights.

    Args:
        tracks: Tracks of square clips.
        facts: Says which objects drop, how large they are, and the camera.
        fps: Frames per second.
    """
    height = _heights(tracks, facts)
    frames = height.shape[1]
    rising = height[:, 1:] > height[:, :-1] + 0.02
    rises = jnp.concatenate([rising, jnp.ones_like(rising[:, :1])], 1)
    # The frame before the rise may lie after the contact already: it is left out.
    flight = jnp.arange(frames)[None, :, None] < rises.argmax(1)[:, None]
    seen = (tracks.pieces == 1) & ~_hindered(tracks)
    time = (jnp.arange(frames) / fps)[None, :, None]
    coefficients = _parabola(jnp.broadcast_to(time, height.shape), height, flight)
    fitted = coefficients[0] + coefficients[1] * time + coefficients[2] * time**2
    count = jnp.maximum(flight.sum(1), 1)
    error = jnp.sqrt((jnp.where(flight, fitted - height, 0.0) ** 2).sum(1) / count)
    fallen = jnp.max(jnp.where(flight, height[:, :1] - height, 0.0), axis=1)
    drops = facts.active & (facts.verb == VERBS.index("drops"))
    whole = jnp.where(flight, seen, True).all(1) & (flight.sum(1) >= 4) & (fallen > 0.2)
    return Gravity(
        ratio=-2.0 * coefficients[2][:, 0] / GRAVITY,
        residual=error / jnp.maximum(fallen, 1e-3),
        valid=drops & whole & (facts.camera == 0)[:, None],
    )


def _heights(tracks: Tracks, facts: Facts) -> Float[Array, "B T K"]:
    """Heights in world units, on the vertical plane in which the object lands."""
    camera = camera_path(0, jnp.zeros(1))
    unit = 2.0 / (GRID * camera.focal[0])
    offset = (tracks.center + 0.5 - GRID / 2) * unit
    ones = jnp.ones_like(offset[..., :1])
    plane = jnp.concatenate([offset[..., 1:], offset[..., :1], ones], -1)
    ray = jnp.matmul(plane, camera.basis[0], precision="highest")
    eye = camera.eye[0]
    radius = jnp.asarray(RADII)[facts.size]
    row = jnp.where(tracks.pieces == 1, tracks.center[..., 0], -1.0)
    lowest = jnp.take_along_axis(ray, row.argmax(1)[:, None, :, None], axis=1)[:, 0]
    depth = (radius - eye[1]) / jnp.minimum(lowest[..., 1], -1e-3) * lowest[..., 2]
    return eye[1] + depth[:, None] / ray[..., 2] * ray[..., 1]


def _parabola(time: Array, height: Array, weight: Array) -> list[Array]:
    """Coefficients of 1, t, t^2 by weighted least squares over axis 1, kept as length 1."""
    w = weight.astype(jnp.float32)
    moment = [(w * time**power).sum(1) for power in range(5)]
    target = jnp.stack([(w * time**power * height).sum(1) for power in range(3)], -1)
    normal = jnp.stack([jnp.stack(moment[row : row + 3], -1) for row in range(3)], -2)
    normal = normal + 1e-9 * jnp.eye(3)[None, None]
    solved = jnp.linalg.solve(normal, target[..., None])[..., 0]
    return [solved[:, None, :, power] for power in range(3)]
