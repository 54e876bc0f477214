"""The world as a game: one object is pushed and stopped and the camera turned, by actions.

An action is held while a frame becomes the next one. What follows from it is simulated, so the
ground truth of a played clip is exact: a pushed ball moves by `PUSH / fps` a frame until it meets
something.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float, Int, Key
from jvdm.errors import ConfigError
from jvdm.keys import named
from jvdm.world import captions, palette
from jvdm.world.clips import facts
from jvdm.world.physics import Commands, simulate
from jvdm.world.render import Shot, orbit_camera, render
from jvdm.world.scene import MAX_OBJECTS, Facts, World, sample_scene, scene_key

ACTIONS = (
    "none",
    "push left",
    "push right",
    "push closer",
    "push away",
    "stop",
    "turn left",
    "turn right",
)
"""What can be done; pushes and stops are of object 0, turns of the camera."""

PUSH = 0.8
"""Horizontal speed of a pushed object in units/s."""

TURN = 0.5
"""Angular speed of a turning camera in rad/s, on the ring of `orbit_camera`."""

_PUSHES = np.array([[-PUSH, 0], [PUSH, 0], [0, PUSH], [0, -PUSH], [0, 0]], np.float32)


class PlayedClip(NamedTuple):
    """Clips that were played; every field has a leading batch axis, `facts` too.

    Attributes:
        video: Frames 0..1 as displayed.
        tokens: What is there, as if all of it rested: actions say what moves.
        actions: Index of `ACTIONS` that is held while each frame becomes the next one.
        facts: What is true of the clip.
    """

    video: Float[Array, "B T H W 3"]
    tokens: Int[Array, "B L"]
    actions: Int[Array, "B T"]
    facts: Facts


def index_of(name: str) -> int:
    """Returns the index of an action.

    Raises:
        ConfigError: If there is none of this name.
    """
    if name not in ACTIONS:
        raise ConfigError(f"the action {name!r:.80}", f"there are {', '.join(ACTIONS)}", "use one")
    return ACTIONS.index(name)


def commands(actions: Int[Array, " T"]) -> Commands:
    """Returns what actions do to objects."""
    place = actions - ACTIONS.index("push left")
    given = (place >= 0) & (place < len(_PUSHES))
    velocity = jnp.asarray(_PUSHES)[jnp.clip(place, 0, len(_PUSHES) - 1)]
    first = jnp.arange(MAX_OBJECTS) == 0
    return Commands(
        given[:, None] & first[None],
        jnp.broadcast_to(velocity[:, None], (len(actions), MAX_OBJECTS, 2)),
    )


def camera_angles(actions: Int[Array, " T"], fps: float) -> Float[Array, " T"]:
    """Returns the angle of the camera on its ring in every frame, in radians."""
    left, right = (actions == ACTIONS.index(name) for name in ("turn left", "turn right"))
    turns = (right.astype(jnp.float32) - left.astype(jnp.float32)) * TURN / fps
    return jnp.cumsum(turns) - turns


def held_actions(key: Key, count: int, keep: float = 0.5) -> Int[Array, " count"]:
    """Draws actions that are kept with a chance, else drawn anew, all equally likely."""
    drawn = jax.random.randint(named(key, "which"), (count,), 0, len(ACTIONS))
    kept = jax.random.bernoulli(named(key, "kept"), keep, (count,))
    since = jax.lax.cummax(jnp.where(kept, 0, jnp.arange(count)))
    return drawn[since]


def of_frames(latent_actions: Int[Array, "*B F"], num_frames: int) -> Int[Array, "*B T"]:
    """Returns the actions of frames where those of latent frames are held for as long as they last.

    Latent frame 0 is the first frame, and nothing led to it; the action of another is held while
    the frames that it stands for come to be.
    """
    stride = (num_frames - 1) // max(latent_actions.shape[-1] - 1, 1)
    place = np.minimum(np.arange(num_frames) // max(stride, 1) + 1, latent_actions.shape[-1] - 1)
    return latent_actions[..., place]


def play(
    world: World,
    split: str,
    indices: Int[Array, " B"],
    actions: Int[Array, "B T"],
    num_objects: int | None = 1,
    caption_style: captions.Style = "mixed",
) -> PlayedClip:
    """Plays the scenes of a split: they begin at rest and are filmed from the front.

    Args:
        world: Size, length and rates.
        split: Name of a seed stream, see `world.SPLITS`.
        indices: Scene numbers, at least 0; may be traced.
        actions: What is done while each frame becomes the next one.
        num_objects: Objects in a scene; None draws them.
        caption_style: Kind of sentence, see `captions.caption_tokens`; objects rest in it.

    Raises:
        ConfigError: On an unknown split.
    """

    def one(index: Array, actions: Array) -> PlayedClip:
        key = scene_key(split, index)
        scene = sample_scene(key, num_objects=num_objects, camera=0, programme=0)
        scene = scene._replace(
            velocity=jnp.zeros_like(scene.velocity),
            position=scene.position.at[:, 1].set(scene.radius),
        )
        course = simulate(scene, world, actions.shape[0], commands(actions))
        shot = Shot(scene, course, orbit_camera(camera_angles(actions, world.fps)))
        known = facts(scene, course, world)
        still = known._replace(
            verb=jnp.zeros_like(known.verb),
            speed=jnp.zeros_like(known.speed),
        )
        tokens = captions.caption_tokens(named(key, "caption"), still, caption_style)
        return PlayedClip(render(shot, world), tokens, actions, known)

    return jax.vmap(one)(indices, actions)


def places(video: Float[Array, "T H W 3"], color: int | Int[Array, ""]) -> Float[Array, "T 2"]:
    """Returns where the pixels of a colour of `COLORS` are on average: x and y, 0..1.

    A frame without any is nan.
    """
    there = (palette.classify(video) == color).astype(jnp.float32)
    count = there.sum((1, 2))
    y, x = ((jnp.arange(there.shape[axis]) + 0.5) / there.shape[axis] for axis in (1, 2))
    along = [jnp.einsum("thw,w->t", there, x), jnp.einsum("thw,h->t", there, y)]
    return jnp.stack(along, -1) / jnp.where(count > 0, count, jnp.nan)[:, None]
