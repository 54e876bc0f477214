"""Planted defects: true clips with one known fault, to calibrate the measures.

A measure that does not rank a clip with its fault below the true clip does not measure
what its name says.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Float, Key
from jvdm.world.counterfactual import remove, resimulate
from jvdm.world.render import Shot, render
from jvdm.world.scene import World

ClipFrames = Float[Array, "T H W 3"]
Defect = Callable[[Shot, ClipFrames, World, Key], ClipFrames]
"""Of a shot, its frames, the world and a key."""


def frozen(shot: Shot, frames: ClipFrames, world: World, key: Key) -> ClipFrames:
    """Nothing moves any more after the first quarter."""
    stop = max(1, len(frames) // 4)
    return frames[jnp.minimum(jnp.arange(len(frames)), stop)]


def shuffled(shot: Shot, frames: ClipFrames, world: World, key: Key) -> ClipFrames:
    """The frames come in random order."""
    return jax.random.permutation(key, frames)


def flicker(shot: Shot, frames: ClipFrames, world: World, key: Key) -> ClipFrames:
    """Brightness and every pixel tremble from frame to frame."""
    whole, grain = jax.random.split(key)
    light = 1.0 + 0.03 * jax.random.normal(whole, (len(frames), 1, 1, 1))
    noise = 0.015 * jax.random.normal(grain, frames.shape)
    return jnp.clip(frames * light + noise, 0.0, 1.0)


def seam(shot: Shot, frames: ClipFrames, world: World, key: Key) -> ClipFrames:
    """The second half is shifted by a few pixels, as by chunks that do not meet."""
    shifted = jnp.roll(frames, max(2, world.width // 32), axis=2)
    return _from(len(frames) // 2, frames, shifted)


def color_drift(shot: Shot, frames: ClipFrames, world: World, key: Key) -> ClipFrames:
    """Hues turn by a third of the circle through the clip."""
    share = jnp.linspace(0.0, 1.0, len(frames))[:, None, None, None]
    return (1.0 - share) * frames + share * jnp.roll(frames, 1, axis=-1)


def weak_gravity(shot: Shot, frames: ClipFrames, world: World, key: Key) -> ClipFrames:
    """Things fall at a third of their acceleration."""
    light = dataclasses.replace(world, gravity=world.gravity / 3.0)
    return render(resimulate(shot, light), world)


def teleport(shot: Shot, frames: ClipFrames, world: World, key: Key) -> ClipFrames:
    """Object 0 is suddenly elsewhere in the middle of the clip."""
    half = shot.trajectory.position.shape[0] // 2
    return _from(half, frames, render(_aside(shot, 0), world))


def vanished(shot: Shot, frames: ClipFrames, world: World, key: Key) -> ClipFrames:
    """Object 0 is gone in the second half."""
    half = shot.trajectory.position.shape[0] // 2
    return _from(half, frames, render(remove(shot, 0), world))


def duplicated(shot: Shot, frames: ClipFrames, world: World, key: Key) -> ClipFrames:
    """A second object of the same looks as object 0 comes after a third of the clip.

    It takes the last slot: the clip must have fewer objects than slots.
    """
    third = shot.trajectory.position.shape[0] // 3
    last = shot.scene.active.shape[0] - 1
    fields = ("active", "shape", "size", "color", "radius")
    copies = {name: getattr(shot.scene, name) for name in fields}
    copies = {name: value.at[last].set(value[0]) for name, value in copies.items()}
    moved = {
        name: value.at[:, last].set(value[:, 0])
        for name, value in (
            ("position", shot.trajectory.position),
            ("rotation", shot.trajectory.rotation),
        )
    }
    twin = shot._replace(
        scene=shot.scene._replace(**copies), trajectory=shot.trajectory._replace(**moved)
    )
    return _from(third, frames, render(_aside(twin, last), world))


def swapped(shot: Shot, frames: ClipFrames, world: World, key: Key) -> ClipFrames:
    """Objects 0 and 1 exchange their colours in the middle of the clip."""
    half = shot.trajectory.position.shape[0] // 2
    color = shot.scene.color
    color = color.at[:2].set(color[:2][::-1])
    other = shot._replace(scene=shot.scene._replace(color=color))
    return _from(half, frames, render(other, world))


DEFECTS: Mapping[str, Defect] = {
    "frozen": frozen,
    "shuffled": shuffled,
    "flicker": flicker,
    "seam": seam,
    "colour drift": color_drift,
    "weak gravity": weak_gravity,
    "teleport": teleport,
    "vanished": vanished,
    "duplicated": duplicated,
    "swapped": swapped,
}
"""Every planted defect, by name."""


def _from(frame: int, before: ClipFrames, after: ClipFrames) -> ClipFrames:
    """Cuts from one clip to another at a frame."""
    return jnp.concatenate([before[:frame], after[frame:]])


def _aside(shot: Shot, slot: int) -> Shot:
    """Moves an object by half of the arena, to the side that has more room."""
    position = shot.trajectory.position
    start = position[:, slot, 0].mean()
    offset = jnp.where(start > 0, -1.8, 1.8)
    moved = position.at[:, slot, 0].add(offset)
    return shot._replace(trajectory=shot.trajectory._replace(position=moved))
