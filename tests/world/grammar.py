"""Reads a caption back: what it states of each object, of the camera and of places.

The inverse of `jvdm.world.captions`, on the host: tests compare captions with the facts.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from jvdm.arrays import Array, Int
from jvdm.world import phrases
from jvdm.world.scene import CAMERAS, COLORS, SHAPES, SIZES, VERBS
from jvdm.world.vocabulary import SPECIAL, WORDS

_Label = TypeVar("_Label")
_Phrases = Mapping[tuple[str, ...], _Label]

_BORDERS = frozenset((",", ";", ".", "and", "while", "as", "but", "meanwhile"))
_ARTICLES = frozenset(("a", "an", "the", "one", "with", "there"))


class ObjectReading(NamedTuple):
    """What a caption states of one object; None is left open.

    Labels index `COLORS`, `SHAPES`, `SIZES`, `VERBS` and `SPEEDS`, all of
    `jvdm.world.scene`.
    """

    color: int | None = None
    shape: int | None = None
    size: int | None = None
    verb: int | None = None
    speed: int | None = None


class RelationReading(NamedTuple):
    """The first object stands to the other as `phrases.RELATIONS[relation]`."""

    subject: ObjectReading
    relation: int
    other: ObjectReading


class Reading(NamedTuple):
    """All that a caption states; `camera` indexes `CAMERAS`."""

    objects: tuple[ObjectReading, ...]
    camera: int | None
    relations: tuple[RelationReading, ...]


def parse(caption: str | Sequence[int] | Int[np.ndarray, " L"] | Int[Array, " L"]) -> Reading:
    """Reads what a caption states.

    Clauses end at punctuation and at joining words; each names one object and
    what it does, or the camera, or two objects and how they stand.

    Args:
        caption: Token ids, or text in words of the vocabulary. Encode free text
            with `jvdm.text.tokenizer.WordTokenizer` first: it knows inflections.

    Returns:
        What is stated; words that belong to no known phrase state nothing.
    """
    if isinstance(caption, str):
        words = re.findall(r"\w+|[,;.]", caption.lower())
    else:
        words = [WORDS[int(i)] for i in np.asarray(caption)]
    objects, relations, camera = [], [], None
    for clause in _clauses(words):
        nouns = [place for place, word in enumerate(clause) if word in _NOUNS]
        if len(nouns) > 1:
            relation = _find(clause, _RELATION_PHRASES)
            if relation is not None:
                split = nouns[0] + 1
                pair = _object(clause[:split]), _object(clause[split:])
                relations.append(RelationReading(pair[0], relation, pair[1]))
        elif nouns:
            objects.append(_object(clause))
        elif camera is None:
            camera = _find(clause, _CAMERA_PHRASES)
    return Reading(tuple(objects), camera, tuple(relations))


def _clauses(words: Iterable[str]) -> list[list[str]]:
    clauses: list[list[str]] = [[]]
    for word in words:
        if word in _BORDERS:
            clauses.append([])
        elif word not in _ARTICLES and word not in SPECIAL[:2]:
            clauses[-1].append(word)
    return [clause for clause in clauses if clause]


def _object(clause: Sequence[str]) -> ObjectReading:
    motion = [word for word in clause if (word,) not in _SPEED_PHRASES]
    return ObjectReading(
        color=_find(clause, _COLOR_PHRASES),
        shape=_find(clause, _SHAPE_PHRASES),
        size=_find(clause, _SIZE_PHRASES),
        verb=_find(motion, _VERB_PHRASES),
        speed=_find(clause, _SPEED_PHRASES),
    )


def _find(words: Sequence[str], known: _Phrases[_Label]) -> _Label | None:
    """Finds the label of the longest known phrase in a clause, the first of equals."""
    for length in range(len(words), 0, -1):
        for start in range(len(words) - length + 1):
            label = known.get(tuple(words[start : start + length]))
            if label is not None:
                return label
    return None


def _phrases(alternatives: Iterable[tuple[int, str]]) -> dict[tuple[str, ...], int]:
    """Keys phrases by their words without articles.

    Raises:
        ValueError: If one phrase has two meanings.
    """
    known: dict[tuple[str, ...], int] = {}
    for label, phrase in alternatives:
        key = tuple(word for word in phrase.split() if word not in _ARTICLES and word != "_")
        if known.setdefault(key, label) != label:
            raise ValueError(f"the phrase {phrase!r} has two meanings")
    return known


def _named(names: Sequence[str], words: Mapping[str, Sequence[str]]) -> dict[tuple[str, ...], int]:
    return _phrases((label, word) for label, name in enumerate(names) for word in words[name])


_COLOR_PHRASES = _named(COLORS, phrases.COLOR_WORDS)
_SIZE_PHRASES = _named(SIZES, phrases.SIZE_WORDS)
_SHAPE_PHRASES = _named(SHAPES, phrases.SHAPE_WORDS)
_RELATION_PHRASES = _named(phrases.RELATIONS, phrases.RELATION_WORDS)
_CAMERA_PHRASES = _named(
    CAMERAS, {c: phrases.CAMERA_FINITE[c] + phrases.CAMERA_TITLES[c] for c in CAMERAS}
)
_SPEED_PHRASES = _phrases(
    (label, phrase) for label in (1, 2) for phrase in phrases.SPEED_WORDS[label]
)
_VERB_PHRASES = _phrases(
    [
        (v, text)
        for v, verb in enumerate(VERBS)
        for s in SHAPES
        for text in phrases.verb_phrases(verb, s)
    ]
    + [
        (VERBS.index("drops"), text)
        for fall in phrases.FALLS
        for text in phrases.FALL_PHRASES[fall]
    ]
)
_NOUNS = {word for words in phrases.SHAPE_WORDS.values() for word in words}
_NOUNS |= set(phrases.OPEN_SHAPE_WORDS)
