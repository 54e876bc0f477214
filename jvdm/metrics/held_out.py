"""Sets of held-out prompts: true clips of split `test` with what their captions tell."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Frames, Int, TokenIds
from jvdm.data.captions import Style, caption_tokens, relations
from jvdm.data.clips import facts, shoot
from jvdm.data.render import Shot, render
from jvdm.data.world import Facts, SceneOptions, World, scene_key
from jvdm.keys import named

STATIC = 0  # index of `CAMERAS`


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


@functools.partial(jax.jit, static_argnums=(0, 1))
def prompts(prompt_set: PromptSet, world: World, indices: Int[Array, " B"]) -> Prompts:
    """Draws the prompts `indices` (from 0) of a set; nothing is rendered."""
    options = SceneOptions(
        num_objects=prompt_set.num_objects,
        camera=prompt_set.camera,
        held_out=prompt_set.held_out,
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


@functools.partial(jax.jit, static_argnums=1)
def film(shots: Shot, world: World) -> Frames:
    """Renders a batch of shots: one program for all sets."""
    return jax.vmap(lambda shot: render(shot, world))(shots)
