"""T5, UMT5 and their tokenizer: the reference is met, padding is zero, prompts are cut."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import WeightsError
from jvdm.text.pieces import PieceTokenizer
from jvdm.text.published import text_encoder, text_encoder_names
from jvdm.text.t5 import relative_buckets
from jvdm.weights.convert import converted
from tests.parity.references import Reference, off
from tests.text.pieces import write_tokenizer
from tests.vae.nano import QUICK

IDS = jnp.array(
    [[7, 3, 90, 12, 5, 44, 3, 81, 17, 60, 23, 1], [5, 33, 2, 9, 1, 0, 0, 0, 0, 0, 0, 0]]
)


@functools.cache
def encoder(name, reads_padding=False):
    """Returns the encoder of a stored reference as a function of ids."""
    reference = Reference(name)
    network = text_encoder(reference.config, PieceTokenizer("tokenizer.json"))
    network = network.clone(dtype="float32", reads_padding=reads_padding)
    shapes = jax.eval_shape(network.init, jax.random.key(0), IDS)["params"]
    tree, _ = converted(text_encoder_names(network), reference.weights, shapes, "a folder")
    run = jax.jit(
        lambda params, ids: network.apply({"params": params}, ids), compiler_options=QUICK
    )
    return functools.partial(run, jax.tree.map(jnp.asarray, tree))


@pytest.mark.parametrize(
    ("name", "output", "reads_padding"),
    [("umt5", "states", False), ("t5", "masked", False), ("t5", "read", True)],
)
def test_the_reference_is_met_and_padding_is_exactly_zero(name, output, reads_padding):
    states, lengths = encoder(name, reads_padding)(IDS)
    np.testing.assert_array_equal(lengths, [12, 5])
    assert off(states, Reference(name).outputs[output]) < 1e-5
    assert np.all(np.asarray(states[1, 5:]) == 0) and np.all(np.abs(states[1, :5]).max(-1) > 0.01)


def test_buckets_of_the_large_model_are_those_of_the_reference():
    near = relative_buckets(512, 32, 128)
    for query in (0, 200, 511):
        expected = Reference("umt5").outputs["buckets"][511 - query : 1023 - query]
        np.testing.assert_array_equal(near[query], expected)


def test_a_prompt_does_not_depend_on_how_long_the_others_are():
    alone = encoder("umt5")(jnp.concatenate([IDS[1:], IDS[1:]]))[0]
    np.testing.assert_array_equal(alone[0], encoder("umt5")(IDS)[0][1])


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
