"""Small shots that the tests of the world share; each program is compiled once."""

import functools

import jax
import jax.numpy as jnp

from jvdm.world.clips import shoot
from jvdm.world.ground_truth import geometry
from jvdm.world.render import Shot
from jvdm.world.scene import World, scene_key

SMALL = World(height=40, width=56, num_frames=7)
FULL = World()


@functools.cache
def _films(world, held_out):
    def film(key, options):
        return shoot(key, world, held_out=held_out, **options)

    return jax.jit(jax.vmap(film, in_axes=(0, None)))


def many(
    world: World, count: int, split: str = "train", held_out: str = "never", **options
) -> Shot:
    """Returns `count` shots with a leading axis; options are traced."""
    return _films(world, held_out)(keys(split, count), options)


def flops(function, *arguments) -> float:
    """Returns the cost that XLA states for the compiled program."""
    cost = jax.jit(function).lower(*arguments).compile().cost_analysis()
    assert cost is not None
    return cost["flops"]


def keys(split: str, count: int):
    """Returns the keys of the first clips of a split."""
    return jax.vmap(lambda index: scene_key(split, index))(jnp.arange(count))


@functools.cache
def small() -> Shot:
    """16 clips of 7 frames."""
    return many(SMALL, 16, "test")


@functools.cache
def whole() -> Shot:
    """512 clips of full length, for their trajectories."""
    return many(FULL, 512)


@functools.cache
def small_geometry():
    """Buffers of `small()`."""
    return jax.jit(jax.vmap(lambda shot: geometry(shot, SMALL)))(small())


def pick(tree, index):
    """Returns entry `index` of the leading axis of every leaf."""
    return jax.tree.map(lambda leaf: leaf[index], tree)
