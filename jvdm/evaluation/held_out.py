"""Sets of held-out prompts: true clips of split `test` with what their captions tell."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Bool, Frames, Int, TokenIds
from jvdm.keys import named
from jvdm.world.captions import Style, caption_text, caption_tokens, relations
from jvdm.world.clips import facts, shoot
from jvdm.world.ground_truth import visible_fraction
from jvdm.world.render import Shot, render
from jvdm.world.scene import Facts, SceneOptions, World, scene_key

STATIC = 0  # index of `CAMERAS`
_LOOK, _LOOK_EVERY = 48, 4  # pixels and frames of the look at what hides what


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """A distribution of scenes and captions.

    Attributes:
        title: What is in it.
        first: Index of its first clip in split `test`; sets share no scene.
        num_objects: Objects per clip; None draws 1 to 3.
        camera: Camera programme; None draws it.
        held_out: Rule for pairs of colour and shape that training never shows.
        style: Style of the captions.
    """

    title: str
    first: int
    num_objects: int | None = None
    camera: int | None = None
    held_out: str = "never"
    style: Style = "full"


SETS = {
    "A": PromptSet("one object, static camera", 0, 1, STATIC),
    "B": PromptSet("two objects, static camera", 100_000, 2, STATIC),
    "C": PromptSet("one to three objects, all cameras", 200_000),
    "H": PromptSet("one object of an unseen colour and shape", 300_000, 1, STATIC, "only"),
    "R": PromptSet("two objects and their places", 400_000, 2, STATIC, "never", "placed"),
}
"""Prompt sets by the letter that names them."""


class Prompts(NamedTuple):
    """Captions with the scenes they come from; every field has a leading batch axis.

    `relation` is how object 0 was said to stand to object 1 (an index of
    `phrases.RELATIONS`), or -1.
    """

    tokens: TokenIds
    facts: Facts
    shot: Shot
    relation: Int[Array, " B"]

    @property
    def texts(self) -> tuple[str, ...]:
        """The captions in words."""
        return tuple(map(caption_text, self.tokens))


@functools.partial(jax.jit, static_argnums=(0, 1))
def prompts(prompt_set: PromptSet, world: World, indices: Int[Array, " B"]) -> Prompts:
    """Draws the prompts `indices` (from 0) of a set; nothing is rendered."""
    options = SceneOptions(
        num_objects=prompt_set.num_objects, camera=prompt_set.camera, held_out=prompt_set.held_out
    )

    def one(index: Array) -> tuple[Any, ...]:
        key = scene_key("test", prompt_set.first + index)
        shot = shoot(key, world, **options)
        known = facts(shot.scene, shot.trajectory, world)
        tokens = caption_tokens(named(key, "caption"), known, prompt_set.style)
        pair = relations(known.position[0])[0, 1]
        told = known.active[:2].all() & (prompt_set.style == "placed")
        return tokens, known, shot, jnp.where(told, pair, -1)

    return Prompts(*jax.vmap(one)(indices))


def draw(prompt_set: PromptSet, world: World, count: int) -> Prompts:
    """Draws the first `count` prompts of a set whose objects are all to be seen.

    In one scene of thirty an object is hidden behind another one all the time; nobody
    can tell whether it is there. Where places are told, scenes without a clear one are
    passed over too. The arrays are on the host.
    """
    parts, found, start = [], 0, 0
    while found < count:
        batch = prompts(prompt_set, world, start + jnp.arange(count))
        good = np.asarray(_shown(batch.shot, world))
        if prompt_set.style == "placed":
            good = good & (np.asarray(batch.relation) >= 0)
        picks = np.flatnonzero(good)[: count - found]
        parts.append(jax.tree.map(lambda leaf, at=picks: np.asarray(leaf)[at], batch))
        found, start = found + len(picks), start + count
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def part_of(drawn: Prompts, start: int, count: int) -> Prompts:
    """Returns `count` prompts from `start` on."""
    return jax.tree.map(lambda leaf: leaf[start : start + count], drawn)


@functools.partial(jax.jit, static_argnums=1)
def _shown(shots: Shot, world: World) -> Bool[Array, " B"]:
    """Whether each object is seen, by more than a quarter of it, in a third of the frames."""
    coarse = dataclasses.replace(world, height=_LOOK, width=_LOOK)

    def one(shot: Shot) -> Array:
        moving = (shot.trajectory, shot.camera)
        trajectory, camera = jax.tree.map(lambda leaf: leaf[::_LOOK_EVERY], moving)
        seen = visible_fraction(Shot(shot.scene, trajectory, camera), coarse) > 0.25
        return (~shot.scene.active | (seen.mean(0) > 1 / 3)).all()

    return jax.vmap(one)(shots)


@functools.partial(jax.jit, static_argnums=1)
def film(shots: Shot, world: World) -> Frames:
    """Renders a batch of shots: one program for all sets."""
    return jax.vmap(lambda shot: render(shot, world))(shots)
