"""The same clip with one thing changed, and exactly which pixels that changes.

A change is a function from a shot to a shot. It keeps every other number, so the
pixels that differ are those of the change, with its shadows. `resimulate` lets the
changed scene take its own course instead of the old one's.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Bool, Float, Int
from jvdm.world.physics import simulate
from jvdm.world.render import Shot, camera_path, instants, shade
from jvdm.world.scene import RADII, World

Slot = int | Int[Array, ""]


class Edit(NamedTuple):
    """A pair of clips and the pixels in which they differ."""

    source: Float[Array, "T H W 3"]
    target: Float[Array, "T H W 3"]
    changed: Bool[Array, "T H W"]


def recolor(shot: Shot, slot: Slot, color: int | Int[Array, ""]) -> Shot:
    """Gives an object another colour (an index of `COLORS`)."""
    return _changed(shot, slot, color=color)


def reshape(shot: Shot, slot: Slot, shape: int | Int[Array, ""]) -> Shot:
    """Gives an object another shape (an index of `SHAPES`) with the same centre."""
    return _changed(shot, slot, shape=shape)


def resize(shot: Shot, slot: Slot, size: int | Int[Array, ""]) -> Shot:
    """Gives an object another size (an index of `SIZES`); its lowest point stays."""
    radius = jnp.asarray(RADII)[size]
    raised = jnp.stack([0 * radius, radius - shot.scene.radius[slot], 0 * radius])
    return move(_changed(shot, slot, size=size, radius=radius), slot, raised)


def remove(shot: Shot, slot: Slot) -> Shot:
    """Takes an object away."""
    return _changed(shot, slot, active=False)


def add(shot: Shot, slot: Slot) -> Shot:
    """Lets the object of an empty slot appear.

    Empty slots have looks, a start cell of their own and a course like all others, so
    the scene stays one that could have been drawn, except that nothing bounced off it.
    """
    return _changed(shot, slot, active=True)


def _changed(shot: Shot, slot: Slot, **values: Any) -> Shot:
    """Sets fields of the scene for one object."""
    scene = shot.scene
    fields = {name: getattr(scene, name).at[slot].set(value) for name, value in values.items()}
    return shot._replace(scene=scene._replace(**fields))


def move(shot: Shot, slot: Slot, offset: Float[Array, " 3"]) -> Shot:
    """Shifts an object's whole course by `offset` in world units."""
    scene, course = shot.scene, shot.trajectory
    return shot._replace(
        scene=scene._replace(position=scene.position.at[slot].add(offset)),
        trajectory=course._replace(position=course.position.at[:, slot].add(offset[None])),
    )


def other_camera(shot: Shot, kind: int | Int[Array, ""]) -> Shot:
    """Films the same events with another camera programme (an index of `CAMERAS`)."""
    progress = jnp.linspace(0.0, 1.0, shot.camera.eye.shape[0])
    scene = shot.scene._replace(camera=jnp.asarray(kind, jnp.int32))
    return Shot(scene, shot.trajectory, camera_path(kind, progress))


def resimulate(shot: Shot, world: World) -> Shot:
    """Lets physics run again from the shot's scene; the camera path is kept."""
    length = shot.camera.eye.shape[0]
    return shot._replace(trajectory=simulate(shot.scene, world, length))


def compare(before: Shot, after: Shot, world: World) -> Edit:
    """Renders both shots and marks the pixels in which any ray differs at all.

    Both go through one program: separately compiled ones may round differently.
    """
    s, height, width = world.supersample, world.height, world.width
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), before, after)

    def film(shot):
        return jax.vmap(lambda now: shade(now, shot.scene, (s * height, s * width)))(instants(shot))

    fine = jax.vmap(film)(both)
    fine = fine.reshape(2, -1, height, s, width, s, 3)
    video = fine.mean((3, 5))
    return Edit(video[0], video[1], (fine[0] != fine[1]).any((2, 4, 5)))
