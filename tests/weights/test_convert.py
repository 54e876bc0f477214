"""The engine that converts: there and back, every array once, and what is wrong with a file."""

import importlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jvdm.errors import WeightsError
from jvdm.models import Conditions, TextStates
from jvdm.samplers import Call
from jvdm.text.pieces import PieceTokenizer
from jvdm.text.published import text_encoder, text_encoder_names
from jvdm.weights.convert import (
    LINEAR,
    Layout,
    Rule,
    Table,
    converted,
    flat,
    halves,
    joined,
    published,
    transposed,
)
from tests.parity.references import Reference

wan = importlib.import_module("jvdm.configs.families.wan")


def part(name):
    """Returns reference, table and shapes of a network of Wan."""
    reference = Reference(name)
    if name == "wan_transformer":
        network = wan.transformer(reference.config)
        told = Conditions(TextStates(jnp.zeros((1, 1, 32)), jnp.ones(1, int)))
        given = (jnp.zeros((1, 1, 2, 2, 4)), Call.at(jnp.zeros((1, 1))), told)
        table = wan.transformer_names(network)
    elif name in ("umt5", "t5"):
        network, given = (
            text_encoder(reference.config, PieceTokenizer("-")),
            (jnp.ones((1, 2), int),),
        )
        table = text_encoder_names(network)
    else:
        network, given = wan.vae(reference.config), (jnp.zeros((1, 1, 4, 4, 3)),)
        table = wan.vae_names(network)
    return reference, table, jax.eval_shape(network.init, jax.random.key(0), *given)["params"]


@pytest.mark.parametrize("name", ["wan_transformer", "umt5", "t5", "wan_vae"])
def test_published_arrays_come_back_bit_by_bit(name):
    reference, table, shapes = part(name)
    tree, report = converted(table, reference.weights, shapes, "a folder")
    assert report == (len(reference.weights), len(reference.weights), 0)
    assert jax.tree.map(np.shape, tree) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    again = published(table, tree)
    assert again.keys() == reference.weights.keys()
    for key, array in reference.weights.items():
        np.testing.assert_array_equal(again[key], array, err_msg=key)


@pytest.mark.parametrize(
    ("layout", "shape", "ours"),
    [
        (LINEAR, (2, 3), (3, 2)),
        (transposed(2, 0, 1), (2, 3, 4), (4, 2, 3)),
        (joined(2, -1), (2, 3, 4), (6, 4)),
        (flat(2), (5, 1, 1), (5,)),
        (halves(6), (3, 12), (3, 12)),
        (LINEAR.then(halves(4)), (8, 3), (3, 8)),
    ],
)
def test_a_layout_there_and_back_is_the_identity(layout: Layout, shape, ours):
    array = np.arange(np.prod(shape)).reshape(shape)
    there = layout.ours(array)
    assert there.shape == ours
    assert not np.array_equal(there, array)
    np.testing.assert_array_equal(layout.theirs(there), array)


def test_halves_puts_even_features_of_a_head_first():
    expected = [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    np.testing.assert_array_equal(halves(6).ours(np.arange(12)), expected)


TABLE = Table(
    (Rule("in.weight", "inner/kernel", LINEAR), Rule("blocks.{}.scale", "layers/gain")),
    copies={"copy.weight": "in.weight"},
    ignored=(r"blocks\.\d+\.extra",),
)
SHAPES = {"inner": {"kernel": np.zeros((3, 2))}, "layers": {"gain": np.zeros((2, 4))}}


def tensors(**changes):
    given = {
        "in.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "blocks.0.scale": np.full(4, 0.0, np.float32),
        "blocks.1.scale": np.full(4, 1.0, np.float32),
    }
    given |= {name.replace("__", "."): array for name, array in changes.items()}
    return {name: array for name, array in given.items() if array is not None}


def test_layers_are_stacked_in_order_and_types_are_kept():
    given = {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors().items()}
    tree, report = converted(TABLE, given, SHAPES, "here")
    assert tree["inner"]["kernel"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(tree["layers"]["gain"][:, 0], [0, 1])
    assert str(report) == "3 arrays expected, 3 loaded, 0 unused"


def test_a_copy_may_stand_beside_an_array_or_for_it():
    weight = tensors()["in.weight"]
    for given in (tensors(copy__weight=weight), tensors(copy__weight=weight, in__weight=None)):
        tree, _ = converted(TABLE, given, SHAPES, "here")
        np.testing.assert_array_equal(tree["inner"]["kernel"], weight.T)
    with pytest.raises(WeightsError, match="copy.weight and in.weight differ"):
        converted(TABLE, tensors(copy__weight=weight + 1), SHAPES, "here")


def test_what_a_network_has_no_use_for_is_counted():
    _, report = converted(TABLE, tensors(blocks__0__extra=np.zeros(1)), SHAPES, "here")
    assert report == (3, 3, 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"blocks__1__scale": None}, "3 arrays expected, 2 found. missing: blocks.1.scale"),
        ({"blocks__2__scale": np.zeros(4)}, "not in the model: blocks.2.scale"),
        ({"other__weight": np.zeros(4)}, "not in the model: other.weight"),
        ({"in__weight": np.zeros((3, 2))}, r"in.weight is \(3, 2\), needs \(2, 3\)"),
        ({"blocks__0__scale": np.zeros(5)}, r"blocks.0.scale is \(5,\), needs \(4,\)"),
        ({"blocks__0__scale": np.full(4, np.nan)}, "blocks.0.scale has 4 non-finite values of 4"),
        ({"in__weight": np.zeros((2, 3), np.int32)}, "in.weight is int32"),
        (
            {"in__weight": np.full((2, 3), np.inf, ml_dtypes.bfloat16)},
            "in.weight has 6 non-finite values",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_own_names(changes, said):
    with pytest.raises(WeightsError, match=said):
        converted(TABLE, tensors(**changes), SHAPES, "here")


def test_a_table_that_does_not_fit_the_network_is_refused():
    with pytest.raises(WeightsError, match="differ: layers/bias"):
        converted(
            TABLE, tensors(), {**SHAPES, "layers": {**SHAPES["layers"], "bias": np.zeros(1)}}, "-"
        )
