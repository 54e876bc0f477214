import itertools

import pytest

from jvdm.world import phrases
from jvdm.world.scene import CAMERAS, COLORS, SHAPES, SIZES, SPEEDS, VERBS
from jvdm.world.vocabulary import ID
from tests.world import grammar
from tests.world.grammar import ObjectReading, parse


def test_a_sentence_is_read_whole():
    reading = parse(
        "A large red ball rolls to the left quickly while a small blue box rests; "
        "the camera pans right. The red ball is behind the blue box."
    )
    first = ObjectReading(
        COLORS.index("red"),
        SHAPES.index("ball"),
        SIZES.index("large"),
        VERBS.index("moves left"),
        SPEEDS.index("fast"),
    )
    second = ObjectReading(COLORS.index("blue"), SHAPES.index("box"), SIZES.index("small"), 0)
    assert reading.objects == (first, second)
    assert reading.camera == CAMERAS.index("pan right")
    (relation,) = reading.relations
    assert phrases.RELATIONS[relation.relation] == "behind"
    assert relation.subject == ObjectReading(first.color, first.shape)
    assert relation.other == ObjectReading(second.color, second.shape)


@pytest.mark.parametrize("verb", range(len(VERBS)), ids=VERBS.__getitem__)
def test_every_verb_phrase_is_read_with_any_speed_word(verb):
    speeds = [(0, "_ _ _")] + [(s, p) for s in (1, 2) for p in phrases.SPEED_WORDS[s]]
    for shape, (speed, words) in itertools.product(SHAPES, speeds):
        size, before, after = (w.replace("_", "") for w in words.split())
        for phrase in phrases.verb_phrases(VERBS[verb], shape):
            (read,) = parse(f"the {size} teal {shape} {before} {phrase} {after}").objects
            assert (read.verb, read.speed or 0) == (verb, speed), phrase
            assert read.shape == SHAPES.index(shape) and read.color == COLORS.index("cyan")


@pytest.mark.parametrize("camera", range(len(CAMERAS)), ids=CAMERAS.__getitem__)
def test_every_camera_phrase_is_read_beside_an_object(camera):
    name = CAMERAS[camera]
    for phrase in (*phrases.CAMERA_FINITE[name], *phrases.CAMERA_TITLES[name]):
        reading = parse(f"a can approaches the camera, {phrase}")
        assert reading.camera == camera, phrase
        assert [o.verb for o in reading.objects] == [VERBS.index("comes closer")]


def test_what_is_left_open_is_none():
    assert parse("a thing").objects == (ObjectReading(),)
    assert parse("") == grammar.Reading((), None, ())
    assert parse([ID["<null>"], 0, 0]) == parse("")
    assert parse([ID["a"], ID["<unknown>"], ID["ball"]]).objects == (ObjectReading(shape=0),)


def test_a_phrase_has_one_meaning():
    with pytest.raises(ValueError, match="two meanings"):
        grammar._phrases([(0, "the ball"), (1, "a ball")])


def test_labels_and_words_cover_the_world():
    assert set(phrases.COLOR_WORDS) == set(COLORS)
    assert set(phrases.SIZE_WORDS) == set(SIZES)
    assert set(phrases.SHAPE_WORDS) == set(SHAPES)
    assert len(phrases.SPEED_WORDS) == len(SPEEDS)
