"""UMT5 and its tokenizer: the numbers of the reference, padding of exactly zero, long prompts."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import WeightsError
from jvdm.text.pieces import PieceTokenizer
from jvdm.text.umt5 import relative_buckets
from jvdm.weights.convert import converted
from tests.parity.references import Reference, off
from tests.text.pieces import write_tokenizer
from tests.vae.nano import QUICK

wan = importlib.import_module("jvdm.configs.families.wan")
REFERENCE = Reference("umt5")
ENCODER = wan.text_encoder(REFERENCE.config, "tokenizer.json").clone(dtype="float32")
IDS = jnp.array(
    [[7, 3, 90, 12, 5, 44, 3, 81, 17, 60, 23, 1], [5, 33, 2, 9, 1, 0, 0, 0, 0, 0, 0, 0]]
)


@functools.cache
def parameters():
    shapes = jax.eval_shape(ENCODER.init, jax.random.key(0), IDS)["params"]
    tree, _ = converted(wan.text_encoder_names(), REFERENCE.weights, shapes, "a folder")
    return jax.tree.map(jnp.asarray, tree)


@functools.cache
def encode():
    run = jax.jit(
        lambda params, ids: ENCODER.apply({"params": params}, ids), compiler_options=QUICK
    )
    return functools.partial(run, parameters())


def test_the_reference_is_met_and_padding_is_exactly_zero():
    states, lengths = encode()(IDS)
    np.testing.assert_array_equal(lengths, [12, 5])
    assert off(states, REFERENCE.outputs["states"]) < 1e-5
    assert np.all(np.asarray(states[1, 5:]) == 0) and np.all(np.abs(states[1, :5]).max(-1) > 0.01)


def test_buckets_of_the_large_model_are_those_of_the_reference():
    near = relative_buckets(512, 32, 128)
    for query in (0, 200, 511):
        expected = REFERENCE.outputs["buckets"][511 - query : 1023 - query]
        np.testing.assert_array_equal(near[query], expected)


def test_a_prompt_does_not_depend_on_how_long_the_others_are():
    alone = encode()(jnp.concatenate([IDS[1:], IDS[1:]]))[0]
    np.testing.assert_array_equal(alone[0], encode()(IDS)[0][1])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")
    return PieceTokenizer(str(path), max_tokens=8)


def test_prompts_end_with_their_token_and_are_padded(tokenizer):
    ids, dropped = tokenizer.encode("a red  ball\n rolls")
    np.testing.assert_array_equal(ids[:5] != 0, True)
    np.testing.assert_array_equal(ids[4:], [1, 0, 0, 0])
    assert dropped == ""
    np.testing.assert_array_equal(tokenizer.encode("a red ball rolls")[0], ids)
    np.testing.assert_array_equal(tokenizer.encode("")[0], [1] + [0] * 7)
    np.testing.assert_array_equal(tokenizer.encode("&amp;amp; a")[0], tokenizer.encode("& a")[0])


def test_a_long_prompt_keeps_its_last_token_and_says_what_is_lost(tokenizer):
    ids, notes = tokenizer.encode_batch(["a ball rolls", "a red ball rolls a red ball rolls a red"])
    assert ids[1, -1] == 1 and (ids[1] != 0).all()
    np.testing.assert_array_equal(
        ids[1, :7], tokenizer.encode("a red ball rolls a red ball")[0][:7]
    )
    (note,) = notes
    assert "reads 8 tokens" in note and note.endswith("'rolls a red'")


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(WeightsError, match="does not exist"):
        PieceTokenizer(str(path)).encode("a")
    path.write_text("{}")
    with pytest.raises(WeightsError, match="is no tokenizer"):
        PieceTokenizer(str(path)).encode("a")
