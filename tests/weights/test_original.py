"""Files of the original code of Wan and LTX-Video are read by the names of their arrays."""

import importlib
import types
from typing import Any

import jax
import numpy as np
import pytest

from jvdm.errors import WeightsError
from jvdm.weights.convert import Table, converted, original_names, published_name
from tests.models import test_ltx, test_wan
from tests.parity.references import Reference
from tests.weights.original import in_original_names

wan = importlib.import_module("jvdm.configs.families.wan")
ltx = importlib.import_module("jvdm.configs.families.ltx")
BETWEEN = Reference("wan_between_transformer")
SEEING = types.SimpleNamespace(
    REFERENCE=BETWEEN, parameters=lambda: test_wan.seeing("wan_between_transformer")[2]
)
FAMILIES: dict[str, tuple[Table, Any]] = {
    "wan": (wan.transformer_names(test_wan.WAN), test_wan),
    "wan of pictures": (wan.transformer_names(wan.transformer(BETWEEN.config)), SEEING),
    "ltx": (ltx.transformer_names(test_ltx.LTX), test_ltx),
}
MARKS = {
    "wan": "head.modulation",
    "wan of pictures": "img_emb.emb_pos",
    "ltx": "adaln_single.linear.weight",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_of_the_original_code_gives_the_same_parameters(family):
    table, tests = FAMILIES[family]
    weights, expected = tests.REFERENCE.weights, tests.parameters()
    given = in_original_names(table.originals, weights)
    assert f"model.diffusion_model.{MARKS[family]}" in given
    tree, report = converted(table, given, expected, "a file")
    assert report == (len(weights), len(weights), 0)
    for leaf, wanted in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(leaf, wanted)
    name = next(name for name in weights if f"model.diffusion_model.{name}" not in given)
    with pytest.raises(WeightsError, match="in the names of Diffusers and of the original code"):
        converted(table, given | {name: weights[name]}, expected, "a file")
    with pytest.raises(WeightsError, match=r"not in the model: other\.weight"):
        more = {"model.diffusion_model.other.weight": np.ones(1, np.float32)}
        converted(table, given | more, expected, "a file")


def test_an_autoencoder_beside_the_transformer_is_counted():
    table, tests = FAMILIES["ltx"]
    given = in_original_names(table.originals, tests.REFERENCE.weights)
    given["vae.decoder.conv_in.conv.bias"] = np.ones(3, np.float32)
    assert converted(table, given, tests.parameters(), "a file")[1].unused == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_modules_are_known_by_both_names(family):
    table, _ = FAMILIES[family]
    for original, published in table.originals.items():
        one, other = (name.replace("{}", "12") for name in (original, published))
        assert published_name(table, f"{one}.bias") == f"{other}.bias"
        assert original_names(table, other) == [one]
        assert published_name(table, f"{one}.bias.more") == f"{one}.bias.more"


@pytest.mark.parametrize("family", FAMILIES)
def test_names_are_those_that_diffusers_makes_of_them(family):
    utilities = pytest.importorskip("diffusers.loaders.single_file_utils")
    table, tests = FAMILIES[family]
    weights = dict(tests.REFERENCE.weights)
    # Diffusers 0.42 leaves the positions of pictures under their original name.
    weights.pop("condition_embedder.image_embedder.pos_embed", None)
    given = in_original_names(table.originals, weights)
    makes = {
        "wan": utilities.convert_wan_transformer_to_diffusers,
        "ltx": utilities.convert_ltx_transformer_checkpoint_to_diffusers,
    }[family.split()[0]]
    made = makes({name: np.array(name) for name in given})
    mine = {published_name(table, name.removeprefix("model.diffusion_model.")) for name in given}
    assert mine == made.keys() == weights.keys()
    for name, said in made.items():
        original = str(said).removeprefix("model.diffusion_model.")
        assert published_name(table, original) == name
