"""Captions of simulated clips that the tests of the grammar share."""

import functools
import itertools
import typing

import jax
import numpy as np

from jvdm.world import clips
from jvdm.world.captions import Style, caption_tokens
from jvdm.world.scene import Facts
from jvdm.world.vocabulary import MAX_TOKENS
from tests.world.grammar import ObjectReading, Reading
from tests.world.shots import FULL, pick, whole

STYLES: tuple[Style, ...] = typing.get_args(Style)


@functools.cache
def known() -> Facts:
    """What is true of the 512 clips of `whole()`."""
    shots = whole()
    return jax.jit(jax.vmap(lambda scene, path: clips.facts(scene, path, FULL)))(
        shots.scene, shots.trajectory
    )


@functools.cache
def told(style: Style, draws: int = 1) -> np.ndarray:
    """Token ids `[512 * draws, L]`; caption `i` is of clip `i // draws`."""
    keys = jax.random.split(jax.random.key(7), (512, draws))
    each = jax.vmap(caption_tokens, in_axes=(0, None, None))
    ids = jax.jit(jax.vmap(each, in_axes=(0, 0, None)), static_argnums=2)(keys, known(), style)
    return np.asarray(ids).reshape(-1, MAX_TOKENS)


def objects(facts: Facts) -> list[ObjectReading]:
    """What could be said of each object of one clip."""
    labels = [np.asarray(x) for x in (facts.color, facts.shape, facts.size, facts.verb)]
    labels.append(np.asarray(facts.speed))
    return [
        ObjectReading(*(int(label[k]) for label in labels))
        for k in np.flatnonzero(np.asarray(facts.active))
    ]


def agrees(stated: ObjectReading, true: ObjectReading) -> bool:
    """Whether nothing that is stated is false of an object."""
    return all(said is None or said == is_ for said, is_ in zip(stated, true, strict=True))


def is_true(reading: Reading, facts: Facts) -> bool:
    """Whether some assignment of clauses to objects makes every statement true."""
    if reading.camera not in (None, int(facts.camera)):
        return False
    there = objects(facts)
    return any(
        all(agrees(stated, true) for stated, true in zip(reading.objects, order, strict=True))
        for order in itertools.permutations(there, len(reading.objects))
    )


@functools.cache
def each_clip() -> list[Facts]:
    """The clips of `known()` one by one, on the host."""
    host = jax.tree.map(np.asarray, known())
    return [pick(host, index) for index in range(512)]
