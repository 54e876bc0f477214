import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvdm.errors import ConfigError
from jvdm.text.tokenizer import WordTokenizer
from jvdm.world.captions import caption_text
from jvdm.world.vocabulary import ID, MAX_TOKENS, WORDS
from tests.world.told import STYLES, told

TOKENIZER = WordTokenizer()


def read(prompt):
    ids, _ = TOKENIZER.encode(prompt)
    return " ".join(WORDS[i] for i in ids if i)


@pytest.mark.parametrize("style", STYLES)
def test_captions_survive_writing_and_reading(style):
    for ids in told(style):
        text = caption_text(ids)
        again, unknown = TOKENIZER.encode(text)
        assert (again == ids).all() and unknown == (), text
        assert TOKENIZER.decode(ids) == text


def test_the_prompt_of_the_readme_has_only_known_words():
    ids, unknown = TOKENIZER.encode(
        "A large red ball rolls to the left while a small blue box rests; the camera pans right."
    )
    assert unknown == () and ids.dtype == np.int32 and ids.shape == (MAX_TOKENS,)
    assert ids[:3].tolist() == [ID["a"], ID["large"], ID["red"]]


@pytest.mark.parametrize(
    ("prompt", "meaning"),
    [
        ("A BALL", "a ball"),
        ("balls, boxes", "ball , box"),
        ("a ball rolling leftward", "a ball rolls leftwards"),
        ("roll toward us", "rolls towards us"),
        ("dropped onto the ground", "drops to the ground"),
        ("sliding approaching bouncing moving", "slides approaches bounces moves"),
        ("it's a slow-rolling ball", "<unknown> a slow rolls ball"),
        ("the box doesn’t move", "the box does not move"),
        ("the camera’s view", "the camera view"),
        ('the "red" (ball) ... rests!?', "the red ball . rests"),
        ("a ball: a box\na can", "a ball . a box . a can"),
        ("...; a ball.", "a ball"),
        ("panning camera zooming out", "pans camera zooms out"),
    ],
)
def test_spelling_does_not_matter(prompt, meaning):
    assert read(prompt) == meaning


def test_every_word_is_read_as_itself():
    for word in WORDS[6:]:
        assert read(word) == word


def test_unknown_words_are_named_once_and_kept():
    ids, unknown = TOKENIZER.encode("a pink cat and a pink dog 🎈 roll <unknown>")
    assert unknown == ("pink", "cat", "dog", "🎈", "unknown")
    assert [WORDS[i] for i in ids[:3]] == ["a", "<unknown>", "<unknown>"]
    assert (ids == ID["<unknown>"]).sum() == 6
    assert "<unknown> <unknown>" in TOKENIZER.decode(ids)


@pytest.mark.parametrize("prompt", ["", "  \n", ".", "()"])
def test_an_empty_prompt_is_the_null_caption(prompt):
    ids, unknown = TOKENIZER.encode(prompt)
    assert ids.tolist() == [ID["<null>"]] + [0] * (MAX_TOKENS - 1) and unknown == ()
    assert TOKENIZER.decode(ids) == ""


def test_a_long_prompt_is_refused_with_what_is_too_much():
    fits = "ball " * MAX_TOKENS
    assert (TOKENIZER.encode(fits)[0] == ID["ball"]).all()
    with pytest.raises(ConfigError, match=f"the limit is {MAX_TOKENS}.*'red box'"):
        TOKENIZER.encode(fits + "red box")


def test_a_batch_is_its_prompts():
    prompts = ["a red ball", "", "a dog"]
    ids, unknown = TOKENIZER.encode_batch(prompts)
    assert (ids == np.stack([TOKENIZER.encode(prompt)[0] for prompt in prompts])).all()
    assert unknown == ((), (), ("dog",))
    assert TOKENIZER.encode_batch([])[0].shape == (0, MAX_TOKENS)


def test_a_tokenizer_is_its_vocabulary():
    small = WordTokenizer(("<pad>", "<null>", "<unknown>", "rolls", "does"), 4)
    assert small == WordTokenizer(small.vocabulary, 4) and hash(small) != hash(TOKENIZER)
    ids, unknown = small.encode("rolling doesn't")
    assert ids.tolist() == [3, 2, 0, 0] and unknown == ("doesn't",)


@given(st.text(max_size=60))
def test_any_text_is_read_and_what_is_written_reads_the_same(text):
    ids, unknown = TOKENIZER.encode(text)
    assert ids.shape == (MAX_TOKENS,) and (ids >= 0).all() and (ids < len(WORDS)).all()
    assert ids[0] > 0  # never an empty attention
    assert (ids == ID["<unknown>"]).any() == bool(unknown)
    if not unknown:
        assert (TOKENIZER.encode(TOKENIZER.decode(ids))[0] == ids).all()
