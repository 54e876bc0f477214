"""Captions: true sentences about a simulated clip, drawn inside jit as token ids.

A caption is a row of clauses (one for each object, the camera, a relation);
a clause is a row of places, each filled from a table of phrases or left 0;
what is empty is squeezed out at the end. The words come from the simulated
facts, never from an intention, so a caption cannot be false.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Bool, Float, Int, Key
from jvdm.world import phrases
from jvdm.world.phrases import PhraseTable
from jvdm.world.scene import RADII, SHAPES, VERBS, Facts
from jvdm.world.vocabulary import ID, MAX_TOKENS, NULL, WORDS, sentence

Style = Literal["mixed", "full", "placed", "layout", "canonical", "appearance", "motion"]
"""What a caption says; see `RULES`."""

_REST, _DROP = VERBS.index("rests"), VERBS.index("drops")
_KINDS = {kind: index for index, kind in enumerate(phrases.JOINT_KINDS)}
_VOWELS = np.array([word[0] in "aeiou" for word in WORDS])
_WIDTH = max(phrases.CAMERA_TABLE.ids.shape[-1], 9 + phrases.VERB_TABLE.ids.shape[-1], 11)


class Rule(NamedTuple):
    """Chances that something is said.

    Args:
        whole: That an object has size, colour and shape; otherwise each is
            left open with chance `open_size`, `open_color`, `open_shape`.
        open_size: See `whole`.
        open_color: See `whole`.
        open_shape: See `whole`.
        verb: That an object's motion is told.
        speed: That the speed of a told motion is told, where it is clear.
        moving: That a camera that moves is told.
        static: That a camera that stands still is told.
        relation: That a spatial relation is told where one is clear.
        first: That the first of the alternative phrases is taken before the
            alternatives are drawn with equal chances; 1 also fixes the order.
    """

    whole: float = 1.0
    open_size: float = 0.0
    open_color: float = 0.0
    open_shape: float = 0.0
    verb: float = 1.0
    speed: float = 1.0
    moving: float = 1.0
    static: float = 0.0
    relation: float = 0.0
    first: float = 0.15


RULES: dict[Style, Rule] = {
    "mixed": Rule(
        *(0.75, 0.5, 0.5, 0.5), verb=0.96, speed=0.5, moving=0.92, static=0.25, relation=0.75
    ),
    "full": Rule(),
    "placed": Rule(relation=1.0),
    "layout": Rule(*(0.95, 0.5, 0.5, 0.5), 0.5, 0.5, 0.92, 0.25, relation=1.0),
    "canonical": Rule(first=1.0),
    "appearance": Rule(verb=0.0, moving=0.0),
    "motion": Rule(0.0, 1.0, 1.0, 0.0),
}
"""mixed: for training; full: all attributes and a moving camera, free wording;
placed: that and a relation; layout: for training, places whenever clear and half of the motions,
so that a place is learnt whatever moves; canonical: the same as full in fixed order and words;
appearance: objects without motion; motion: shapes and motion alone."""


class _Clauses(NamedTuple):
    """Clauses before they are ordered and joined."""

    ids: Int[Array, "clauses width"]
    said: Bool[Array, " clauses"]
    title: Bool[Array, " clauses"]  # without a finite verb


def caption_tokens(key: Key, facts: Facts, style: Style = "mixed") -> Int[Array, " L"]:
    """Draws one caption of a clip.

    Args:
        key: Chooses the wording.
        facts: What is true of the clip (one clip; use `jax.vmap` for more).
        style: What is said.

    Returns:
        int32 token ids `[MAX_TOKENS]`, padded with 0; the null caption if
        there is nothing to say.
    """
    rule = RULES[style]
    num_objects = facts.active.shape[0]
    num_clauses = num_objects + 2
    draws = jax.random.uniform(key, (13 * num_objects + 3 * num_clauses + 8,))
    by_object = draws[: 13 * num_objects].reshape(13, num_objects)
    by_clause = draws[13 * num_objects : -8].reshape(3, num_clauses)
    whole = draws[-8:]
    objects, names = _object_clauses(by_object, facts, rule)
    camera = _camera_clause(whole, facts, rule)
    relation = _relation_clause(whole, by_clause[0], facts, names, rule)
    parts = zip(objects, camera, relation, strict=True)
    clauses = _Clauses(*(jnp.concatenate(part) for part in parts))
    return _squeeze(_join(clauses, by_clause, whole, rule))


def caption_text(ids: Int[Array, " L"] | Int[np.ndarray, " L"]) -> str:
    """Writes token ids as a sentence; the null caption is the empty string."""
    return sentence(WORDS[int(index)] for index in np.asarray(ids))


def _pick(table: PhraseTable, row: Array, draw: Array, first: float) -> Int[Array, "... width"]:
    """Takes the first phrase of a row with chance `first`, else any, by a draw in 0..1."""
    count = jnp.asarray(table.count)[row]
    spread = (draw - first) / max(1.0 - first, 1e-6)
    index = jnp.where(draw < first, 0, (spread * count).astype(jnp.int32))
    return jnp.asarray(table.ids)[row, jnp.minimum(index, count - 1)]


def _object_clauses(
    draws: Float[Array, "draws K"], facts: Facts, rule: Rule
) -> tuple[_Clauses, Int[Array, "K width"]]:
    """Says what each object is and does; also returns names for references.

    A name is "the", colour and shape; it is all 0 where colour or shape is open.
    """
    whole = draws[0] < rule.whole
    sized = whole | (draws[1] >= rule.open_size)
    colored = whole | (draws[2] >= rule.open_color)
    shaped = whole | (draws[3] >= rule.open_shape)
    moved = draws[4] < rule.verb
    size = jnp.where(sized[:, None], _pick(phrases.SIZE_TABLE, facts.size, draws[5], rule.first), 0)
    color = _pick(phrases.COLOR_TABLE, facts.color, draws[6], max(rule.first, 0.5))
    color = jnp.where(colored[:, None], color, 0)
    shape_row = jnp.where(shaped, facts.shape, len(SHAPES))
    noun = _pick(phrases.SHAPE_TABLE, shape_row, draws[7], max(rule.first, 0.4))
    determiner = _pick(phrases.DETERMINER_TABLE, jnp.zeros_like(facts.shape), draws[8], rule.first)
    verb = _pick(phrases.VERB_TABLE, _verb_row(facts), draws[9], rule.first)
    timed = moved & (facts.verb != _REST) & (facts.verb != _DROP) & (draws[12] < rule.speed)
    speed = _pick(phrases.SPEED_TABLE, jnp.where(timed, facts.speed, 0), draws[10], rule.first)
    existence = (~moved & (draws[11] < 0.3))[:, None]  # "there is a red ball"
    there = jnp.where(existence, jnp.array([ID["there"], ID["is"]], jnp.int32)[None], 0)
    ids = jnp.concatenate(
        [there, determiner, speed[:, :1], size, color, noun]
        + [speed[:, 1:2], jnp.where(moved[:, None], verb, 0), speed[:, 2:]],
        axis=1,
    )
    definite = jnp.full_like(noun, ID["the"])
    named = (colored & shaped & facts.active)[:, None]
    names = jnp.where(named, jnp.concatenate([definite, color, noun], axis=1), 0)
    return _Clauses(_widen(ids), facts.active, ~moved & ~existence[:, 0]), names


def _verb_row(facts: Facts) -> Int[Array, " K"]:
    """Finds the row of `VERB_TABLE`; a fall is told as far as it is seen."""
    height = facts.position[:, :, 1] - jnp.asarray(RADII)[facts.size][None]
    rise = jnp.max(height - jax.lax.cummin(height, axis=0), axis=0)
    lowest = jnp.min(height, axis=0)
    # A frame rarely shows the contact itself: rising again near the ground proves it.
    landed = (lowest < 0.05) | ((rise > 0.02) & (lowest < 0.3))
    fall = jnp.where(landed, jnp.where(rise > 0.12, 2, 1), 0)
    loss = jnp.max(jax.lax.cummax(height, axis=0) - height, axis=0)
    fall = jnp.where(rise > loss, 3, fall)  # Only in a part of a clip: after the impact.
    plain = facts.verb * len(SHAPES) + facts.shape
    return jnp.where(facts.verb == _DROP, len(VERBS) * len(SHAPES) + fall, plain)


def _camera_clause(draws: Float[Array, " draws"], facts: Facts, rule: Rule) -> _Clauses:
    told = draws[0] < jnp.where(facts.camera == 0, rule.static, rule.moving)
    title = draws[1] > max(rule.first, 0.75)
    row = facts.camera + jnp.where(title, len(phrases.CAMERA_FINITE), 0)
    ids = _pick(phrases.CAMERA_TABLE, row, draws[2], rule.first)
    return _Clauses(_widen(ids[None]), told[None], title[None])


def _relation_clause(
    draws: Float[Array, " draws"],
    ranks: Float[Array, " ranks"],
    facts: Facts,
    names: Int[Array, "K width"],
    rule: Rule,
) -> _Clauses:
    """Says where one named object is from another in the first frame."""
    relation = relations(facts.position[0])
    named = names[:, 0] > 0
    usable = (relation >= 0) & named[:, None] & named[None]
    num_objects = names.shape[0]
    rank = ranks[:num_objects, None] + 2.0 * jnp.roll(ranks, 1)[None, :num_objects]
    best = jnp.argmax(jnp.where(usable, rank, -1.0))
    subject, other = best // num_objects, best % num_objects
    row = jnp.maximum(relation[subject, other], 0)
    middle = _pick(phrases.RELATION_TABLE, row, draws[3], rule.first)
    ids = jnp.concatenate([names[subject], middle, names[other]])
    told = jnp.any(usable) & (draws[4] < rule.relation)
    return _Clauses(_widen(ids[None]), told[None], jnp.zeros((1,), bool))


def relations(position: Float[Array, "K 3"], margin: float = 0.6) -> Int[Array, "K K"]:
    """Says how each object stands to each other, seen from the camera.

    The camera looks along -z, from at most 20 degrees beside the z axis: a
    distance along x that exceeds both `margin` and the distance along z is
    the same side in every such view; so is depth with x and z exchanged.

    Returns:
        Index into `phrases.RELATIONS` of object `[i]` as seen from `[j]`, or
        -1 where nothing is clear.
    """
    gap = position[:, None] - position[None]
    x, z = gap[..., 0], gap[..., 2]
    sideways, depth = jnp.where(x < 0, 0, 1), jnp.where(z < 0, 2, 3)
    clear_x = (jnp.abs(x) > margin) & (jnp.abs(x) > jnp.abs(z))
    clear_z = (jnp.abs(z) > margin) & (jnp.abs(z) > jnp.abs(x))
    return jnp.where(clear_x, sideways, jnp.where(clear_z, depth, -1))


def _widen(ids: Int[Array, "clauses width"]) -> Int[Array, "clauses wide"]:
    return jnp.pad(ids, ((0, 0), (0, _WIDTH - ids.shape[1])))


def _join(
    clauses: _Clauses,
    draws: Float[Array, "draws clauses"],
    whole: Float[Array, " whole"],
    rule: Rule,
) -> Int[Array, " places"]:
    """Orders the clauses and writes what stands between them."""
    order = jnp.argsort(_places(draws[1], whole, clauses.said, rule))
    ids, said, title = (part[order] for part in clauses)
    joint = _pick(phrases.JOINT_TABLE, _kinds(order, title), draws[2], rule.first)
    # "while a box rests, a ball rolls": the first clause may depend on the second.
    opens = (whole[5] > max(rule.first, 0.88)) & said[1] & ~title[0]
    opener = _pick(phrases.OPENER_TABLE, jnp.int32(0), whole[6], 0.0)
    comma = jnp.zeros_like(opener).at[0].set(ID[","])
    joint = joint.at[0].set(jnp.where(opens, opener, 0))
    joint = joint.at[1].set(jnp.where(opens, comma, joint[1]))
    return jnp.where(said[:, None], jnp.concatenate([joint, ids], axis=1), 0).reshape(-1)


def _kinds(order: Int[Array, " clauses"], title: Bool[Array, " clauses"]) -> Int[Array, " clauses"]:
    """Finds the row of `JOINT_TABLE` for each clause in its place."""
    num = order.shape[0]
    camera, relation = order == num - 2, order == num - 1
    kind = jnp.where(jnp.arange(num) > 1, _KINDS["later object"], _KINDS["object"])
    kind = jnp.where(camera, _KINDS["camera"], kind)
    kind = jnp.where(title | jnp.roll(title, 1), _KINDS["title"], kind)
    kind = jnp.where(camera & title, _KINDS["camera title"], kind)
    return jnp.where(relation, _KINDS["relation"], kind)


def _places(
    draws: Float[Array, " clauses"],
    whole: Float[Array, " whole"],
    said: Bool[Array, " clauses"],
    rule: Rule,
) -> Float[Array, " clauses"]:
    """Gives each clause its rank: objects in any order, the camera mostly last."""
    num = draws.shape[0]
    if rule.first == 1.0:
        return jnp.arange(num) + 10.0 * ~said
    camera = jnp.where(whole[7] < 0.55, 2.0, jnp.where(whole[7] < 0.8, -1.0, draws[-2]))
    relation = jnp.where(draws[-1] < 0.5, 1.5, 2.5)
    return jnp.concatenate([draws[:-2], camera[None], relation[None]]) + 10.0 * ~said


def _squeeze(places: Int[Array, " places"]) -> Int[Array, " L"]:
    """Moves the tokens to the front, and writes "an" before a vowel."""
    order = jnp.argsort(places == 0, stable=True)[:MAX_TOKENS]
    ids = places[order].astype(jnp.int32)
    vowel = jnp.asarray(_VOWELS)[jnp.roll(ids, -1)]
    ids = jnp.where((ids == ID["a"]) & vowel, ID["an"], ids)
    return ids.at[0].set(jnp.where(ids[0] == 0, NULL, ids[0]))
