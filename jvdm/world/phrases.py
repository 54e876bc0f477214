"""The phrases of the caption grammar, as tables of token ids.

A table holds, for every label, the alternative ways to say it. The first is
the canonical one; a phrase that stands twice is twice as likely.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jvdm.world.scene import CAMERAS, COLORS, SHAPES, SIZES, VERBS
from jvdm.world.vocabulary import ID

COLOR_WORDS = {
    "red": ("red", "scarlet", "crimson"),
    "green": ("green", "emerald", "lime"),
    "blue": ("blue", "cobalt", "sapphire"),
    "yellow": ("yellow", "golden", "lemon"),
    "purple": ("purple", "violet", "magenta"),
    "cyan": ("cyan", "turquoise", "aqua", "teal"),
    "orange": ("orange", "tangerine"),
}
SIZE_WORDS = {
    "small": ("small", "little", "tiny", "mini"),
    "large": ("large", "big", "huge", "giant"),
}
SHAPE_WORDS = {
    "ball": ("ball", "sphere", "orb"),
    "box": ("box", "cube", "block", "crate"),
    "can": ("can", "cylinder", "tin", "barrel"),
}
OPEN_SHAPE_WORDS = ("object", "thing", "item")
DETERMINERS = ("a", "a", "a", "a", "a", "the", "the", "one")

# Where a speed word stands: before the size, before the verb, after the verb.
SPEED_WORDS = (
    ("_ _ _",),
    ("_ _ slowly", "_ slowly _", "_ _ slowly", "_ _ gently", "_ gently _", "slow _ _"),
    ("_ _ fast", "_ _ quickly", "_ quickly _", "_ _ rapidly", "_ rapidly _", "_ swiftly _")
    + ("_ _ swiftly", "fast _ _"),
)
_GAIT = {"ball": ("rolls",), "box": ("slides", "glides"), "can": ("slides", "glides")}

# Phrases for a fall depend on what is seen of it.
FALLS = ("in the air", "landed", "bounced", "rising")
_FALLING = ("drops", "falls", "drops down", "falls down", "plunges", "plummets")
_LANDING = tuple(
    f"{verb} to the {end}" for verb in ("falls", "drops") for end in ("ground", "floor")
)
FALL_PHRASES = {
    "in the air": _FALLING,
    "landed": _FALLING + _LANDING,
    "bounced": _FALLING + _LANDING + ("bounces", "bounces", "rebounds"),
    "rising": ("bounces", "rebounds"),
}


def _sideways(gaits: Sequence[str], side: str) -> tuple[str, ...]:
    ways = (f"to the {side}", side, f"{side}wards")
    general = [f"{verb} {way}" for verb in ("moves", "goes", "travels", "heads") for way in ways]
    return (*general, *2 * [f"{gait} {way}" for gait in gaits for way in ways])


def _closer(gaits: Sequence[str]) -> tuple[str, ...]:
    places = ("towards the camera", "towards the viewer", "towards us")
    general = [f"{verb} {place}" for verb in ("comes", "moves", "advances") for place in places]
    own = [f"{gait} {where}" for gait in gaits for where in ("closer", *places)]
    plain = ("comes closer", "gets closer", "moves closer", "comes nearer", "gets nearer")
    return (*plain, "approaches", "approaches the camera", "approaches the viewer", *general, *own)


def _away(gaits: Sequence[str]) -> tuple[str, ...]:
    endings = ("away", "into the distance", "into the background")
    general = [f"{verb} {end}" for verb in ("moves", "goes") for end in endings]
    own = [f"{gait} {end}" for gait in gaits for end in endings]
    longer = ("moves away from the camera", "moves further away", "recedes", "retreats")
    return (*general, *longer, "recedes into the distance", *own)


def verb_phrases(verb: str, shape: str) -> tuple[str, ...]:
    """Returns the ways to say that an object of this shape does this."""
    gaits = _GAIT[shape]
    if verb in ("moves left", "moves right"):
        return _sideways(gaits, verb.removeprefix("moves "))
    if verb == "comes closer":
        return _closer(gaits)
    if verb == "moves away":
        return _away(gaits)
    if verb == "drops":
        return FALL_PHRASES["in the air"]
    if verb == "wanders":
        own = [f"{gait} around" for gait in gaits]
        moves = ("moves around", "moves about", "drifts around", "drifts about")
        return ("wanders", "wanders around", "wanders about", *moves, "roams around", *own)
    resting = [f"{verb} still" for verb in ("stays", "stands", "sits", "lies", "remains", "is")]
    places = ("rests in place", "stays in place", "is motionless", "is stationary", "does not move")
    return ("rests", "rests", *resting, *places, "remains motionless")


def _camera_phrases(camera: str) -> tuple[str, ...]:
    verb, _, way = camera.partition(" ")
    if verb == "zoom":
        subjects = ("the camera", "the camera", "the view", "the shot")
        return tuple(f"{subject} zooms {way}" for subject in subjects)
    if verb == "static":
        still = ("is still", "is static", "is fixed", "is stationary", "stays fixed")
        more = ("does not move", "stays still", "remains still")
        return tuple(f"the camera {end}" for end in (*still, *more))
    ways = (way, f"to the {way}")
    verbs = ("pans", "turns") if verb == "pan" else ("orbits", "circles")
    return tuple(
        f"{who} {does} {where}"
        for does in verbs
        for who in ("the camera", "the view" if does == "pans" else "the camera")
        for where in ways
    )


def _camera_titles(camera: str) -> tuple[str, ...]:
    """Ways to say it without a finite verb."""
    if camera == "static":
        titles = [f"{word} camera" for word in ("static", "fixed", "stationary")]
        return (*titles, "with a static camera", "with a fixed camera", "static shot", "fixed view")
    verb, _, way = camera.partition(" ")
    return (f"camera {verb} {way}", f"with a camera {verb} {way}")


CAMERA_FINITE = {camera: _camera_phrases(camera) for camera in CAMERAS}
CAMERA_TITLES = {camera: _camera_titles(camera) for camera in CAMERAS}

RELATIONS = ("left of", "right of", "behind", "in front of")
RELATION_WORDS = {
    "left of": ("is to the left of", "is left of", "is on the left of"),
    "right of": ("is to the right of", "is right of", "is on the right of"),
    "behind": ("is behind",),
    "in front of": ("is in front of",),
}

# What stands before a clause, by the kind of the clause and its neighbours.
JOINT_KINDS = ("object", "camera", "title", "relation", "later object", "camera title")
JOINTS = {
    "object": ("while", "while", "and", "and", ",", ";", ".", "as", ", and", ", while", "but"),
    "camera": (";", "while", "and", ",", ".", "as", ", while", ", but", ". meanwhile"),
    "title": (",", ";", ".", "and"),
    "camera title": (",", ";", "."),
    "relation": (".", ";", ",", "and"),
    "later object": ("and", ", and", ",", ";", ".", ". meanwhile"),
}
OPENERS = ("while", "as")


class PhraseTable(NamedTuple):
    """Alternatives of equal width for every label.

    Args:
        ids: Token ids `[*labels, alternatives, width]`, 0 where there is none.
        count: Number of alternatives of each label.
    """

    ids: np.ndarray
    count: np.ndarray


def phrase_table(rows: Sequence[Sequence[str]], width: int | None = None) -> PhraseTable:
    """Builds the table of `rows[label][alternative]`; `_` leaves a place empty."""
    tokens = [[[ID[w] if w != "_" else 0 for w in p.split()] for p in row] for row in rows]
    longest = max(len(phrase) for row in tokens for phrase in row)
    most = max(len(row) for row in tokens)
    ids = np.zeros((len(rows), most, width or longest), np.int32)
    for label, row in enumerate(tokens):
        for alternative, phrase in enumerate(row):
            ids[label, alternative, : len(phrase)] = phrase
    return PhraseTable(ids, np.array([len(row) for row in rows], np.int32))


def _named(words: Mapping[str, Sequence[str]], names: Sequence[str]) -> PhraseTable:
    return phrase_table([words[name] for name in names])


COLOR_TABLE = _named(COLOR_WORDS, COLORS)
SIZE_TABLE = _named(SIZE_WORDS, SIZES)
SHAPE_TABLE = phrase_table([*(SHAPE_WORDS[shape] for shape in SHAPES), OPEN_SHAPE_WORDS])
DETERMINER_TABLE = phrase_table([DETERMINERS])
SPEED_TABLE = phrase_table(SPEED_WORDS)
CAMERA_TABLE = phrase_table([*CAMERA_FINITE.values(), *CAMERA_TITLES.values()])
"""Rows: finite clauses of every camera, then titles of every camera."""
RELATION_TABLE = _named(RELATION_WORDS, RELATIONS)
JOINT_TABLE = _named(JOINTS, JOINT_KINDS)
OPENER_TABLE = phrase_table([OPENERS], width=JOINT_TABLE.ids.shape[-1])

VERB_TABLE = phrase_table(
    [verb_phrases(verb, shape) for verb in VERBS for shape in SHAPES]
    + [FALL_PHRASES[fall] for fall in FALLS]
)
"""Row `verb * len(SHAPES) + shape`; then one row for each of `FALLS`."""
