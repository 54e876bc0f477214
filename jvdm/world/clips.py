"""From indices of a split to videos with captions and facts, inside or outside `jit`."""

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Float, Int, Key
from jvdm.keys import named
from jvdm.world import captions
from jvdm.world.physics import Trajectory, simulate
from jvdm.world.render import Shot, camera_path, render
from jvdm.world.scene import (
    Facts,
    Scene,
    SceneOptions,
    World,
    held_out_motions,
    sample_scene,
    scene_key,
    speed_labels,
    verb_labels,
)


class WorldClip(NamedTuple):
    """Clips with their captions; every field has a leading batch axis, `facts` too.

    `video` is 0..1 as displayed, `tokens` index `jvdm.world.vocabulary.WORDS`.
    """

    video: Float[Array, "B T H W 3"]
    tokens: Int[Array, "B L"]
    facts: Facts


def clips(
    world: World,
    split: str,
    indices: Int[Array, " B"],
    *,
    num_frames: int | None = None,
    stride: int = 1,
    caption_style: captions.Style = "mixed",
    **options: Unpack[SceneOptions],
) -> WorldClip:
    """Makes the clips of a split at `indices`; a clip depends on its own index alone.

    Args:
        world: Size, length and rates.
        split: Name of a seed stream, see `world.SPLITS`.
        indices: Clip numbers, at least 0; may be traced.
        num_frames: Length of the simulated clip; None is `world.num_frames`.
        stride: Draws every `stride`-th frame; `facts` holds the positions of these.
        caption_style: Kind of sentence, see `captions.caption_tokens`.
        **options: See `SceneOptions`.

    Raises:
        ConfigError: On an unknown split or value of `held_out`.
    """

    def one(index):
        key = scene_key(split, index)
        made = shoot(key, world, num_frames=num_frames, **options)
        known = facts(made.scene, made.trajectory, world)
        tokens = captions.caption_tokens(named(key, "caption"), known, caption_style)
        drawn = jnp.arange(0, known.position.shape[0], stride)
        known = known._replace(position=known.position[drawn], velocity=known.velocity[drawn])
        return WorldClip(render(made, world, drawn), tokens, known)

    return jax.vmap(one)(indices)


def shoot(
    key: Key, world: World, *, num_frames: int | None = None, **options: Unpack[SceneOptions]
) -> Shot:
    """Draws and simulates a scene and chooses its camera path.

    Verbs are outcomes and the camera moves nothing, so a held-out pair of verb and
    camera is avoided after the simulation, by a static camera; this also wins over
    `camera`. With `held_out="any"` it is not avoided.
    """
    scene = sample_scene(key, **options)
    trajectory = simulate(scene, world, num_frames)
    if options.get("held_out", "never") != "any":
        verb = verb_labels(trajectory.position, world.fps)
        forbidden = jnp.asarray(held_out_motions())[verb, scene.camera] & scene.active
        scene = scene._replace(camera=jnp.where(forbidden.any(), 0, scene.camera))
    progress = jnp.linspace(0.0, 1.0, trajectory.position.shape[0])
    return Shot(scene, trajectory, camera_path(scene.camera, progress))


def facts(scene: Scene, trajectory: Trajectory, world: World) -> Facts:
    """States what is true of a clip; see `Facts`."""
    verb = verb_labels(trajectory.position, world.fps)
    speed = speed_labels(trajectory.position, world.fps)

    def seen(label):
        return jnp.where(scene.active, label, 0)

    return Facts(
        active=scene.active,
        shape=seen(scene.shape),
        size=seen(scene.size),
        color=seen(scene.color),
        verb=seen(verb),
        speed=seen(speed),
        camera=scene.camera,
        position=trajectory.position,
        velocity=trajectory.velocity,
    )
