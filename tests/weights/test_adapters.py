"""Adapters of a model of two networks: which they are of is asked for, or said by the file."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jvdm.errors import ConfigError, WeightsError
from jvdm.models.low_rank import LOW_RANK, Adapted, variables
from jvdm.pipeline.loading import manifest_of, system_of
from jvdm.pricing import stored_shapes
from jvdm.stages import measuring
from jvdm.weights import lora
from jvdm.weights.adapters import Network, read_changes
from jvdm.weights.convert import published
from jvdm.weights.diffusers import read_tensors
from jvdm.weights.lora import Adapter
from jvdm.weights.safetensors import flatten, unflatten
from tests.models.test_wan import parameters
from tests.weights.test_lora import TABLE, products, write
from tests.weights.wan_folder import write_wan

NETWORKS = {
    "high": Network("transformer", TABLE, parameters()),
    "low": Network("transformer_2", TABLE, parameters(1)),
}
COUNT = len(products())


def of_both(path):
    """Writes a file with changes of both networks; those of the second one are twice as large."""
    tensors = {}
    for name, (down, up) in products().items():
        for folder, factor in (("transformer", 1), ("transformer_2", 2)):
            tensors[f"{folder}.{name}.lora_A.weight"] = down
            tensors[f"{folder}.{name}.lora_B.weight"] = np.float32(factor) * up
    safetensors.numpy.save_file(tensors, path)
    return Adapter(path)


def test_what_is_asked_for_the_keys_or_the_name_say_the_network(tmp_path):
    path = write(tmp_path / "x.safetensors", "original").path
    for network in NETWORKS:
        asked = Adapter.parsed(f"{network}={path}:0.5")
        assert asked == Adapter(path, 0.5, network) and asked.label == f"{network}={path}"
        assert read_changes(asked, NETWORKS).keys() == {network}
    both = of_both(tmp_path / "both.safetensors")
    found = read_changes(both, NETWORKS)
    assert {name: len(changes) for name, changes in found.items()} == {"high": COUNT, "low": COUNT}
    for name, change in found["low"].items():
        np.testing.assert_array_equal(change.up, 2 * found["high"][name].up)
    for network in NETWORKS:
        (one,) = read_changes(Adapter(both.path, 1.0, network), NETWORKS).items()
        assert one[0] == network and one[1]["patch_embedding.weight"].scale == 1
    for place, network in {
        "wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise.safetensors": "high",
        "Wan22_A14B_T2V_LOW_Noise_rank64.safetensors": "low",
        "Wan22-allow-HighNoise.safetensors": "high",
    }.items():
        assert read_changes(write(tmp_path / place, "kohya"), NETWORKS).keys() == {network}


def test_a_file_may_have_a_name_like_that_of_a_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "high=x.safetensors", "kohya")
    assert Adapter.parsed("high=x.safetensors:2") == Adapter(lora.Path("high=x.safetensors"), 2.0)


@pytest.mark.parametrize(
    ("asked", "networks", "kind", "said"),
    [
        ("middle=", ("high", "low"), ConfigError, "'middle'; its networks are high, low"),
        ("high=", ("",), ConfigError, "the model has one network; write PATH"),
        ("", ("high", "low"), WeightsError, "which of the networks.*--lora high=PATH low=PATH"),
    ],
)
def test_what_says_no_network_is_refused(tmp_path, asked, networks, kind, said):
    path = write(tmp_path / "thigh_noise.safetensors", "kohya").path
    known = dict(zip(networks, NETWORKS.values(), strict=False))
    with pytest.raises(kind, match=said):
        read_changes(Adapter.parsed(f"{asked}{path}"), known)


def test_both_networks_of_a_folder_are_changed_each_by_its_own(tmp_path):
    folder = write_wan(tmp_path / "wan", "a14b")
    path = write(tmp_path / "x.safetensors", "peft").path
    loras = [f"high={path}:0.5", of_both(tmp_path / "both.safetensors").path]
    expected = {name: network.expected for name, network in NETWORKS.items()}
    with measuring() as stages:
        added: Any = manifest_of(folder, loras)
        changed = flatten(added.parameters(folder, "model", expected)[1])
        separate: Any = manifest_of(folder, loras, separate=True)
        plain = flatten(separate.parameters(folder, "model", expected)[1])
        low_rank, whole = zip(*separate.factors(expected), strict=True)
    strengths = jnp.array([0.5, 1.0])
    beside = variables(Adapted(unflatten(plain), low_rank, whole, strengths))
    factors = flatten(beside[LOW_RANK])
    for name, leaf in flatten(expected).items():
        np.testing.assert_array_equal(plain[name], leaf)
        if f"{name}_down" in factors:
            leaf = leaf + factors[f"{name}_down"] @ factors[f"{name}_up"]
        np.testing.assert_allclose(changed[name], leaf, rtol=1e-5, atol=1e-5, err_msg=name)
    kernels = [np.asarray(changed[f"{name}/patch_in/kernel"]) for name in NETWORKS]
    old = [np.asarray(plain[f"{name}/patch_in/kernel"]) for name in NETWORKS]
    first, second = (new - before for new, before in zip(kernels, old, strict=True))
    np.testing.assert_allclose(first / 1.5, second / 2, rtol=1e-3, atol=1e-4)
    assert stages.arrays[f"high={path}"] == f"{COUNT} arrays of high changed, strength 0.5"
    said = stages.arrays[str(loras[1])]
    assert said == f"{COUNT} arrays of high and {COUNT} arrays of low changed, strength 1"


@pytest.mark.parametrize("version", ["picture", "a14b of a picture"])
def test_networks_of_pictures_are_changed_where_they_read_these(tmp_path, version):
    """All products of a layer, those of the states of pictures too; of both networks if two."""
    folder = write_wan(tmp_path / "wan", version)
    plain: Any = manifest_of(folder)
    expected = stored_shapes(system_of(plain))["model"]
    rng, tensors, products = np.random.RandomState(3), {}, {}
    for part, network in plain.networks(expected).items():
        stored = read_tensors(folder / network.folder)
        kernels = [name for name in stored if name.endswith("weight") and stored[name].ndim == 2]
        kernels = [name for name in kernels if "embedder" in name or "blocks.1." in name]
        for name in kernels:
            height, width = stored[name].shape
            down, up = rng.standard_normal((2, width)), rng.standard_normal((height, 2))
            module = f"{network.folder}.{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = down.astype(np.float32)
            tensors[f"{module}.lora_B.weight"] = up.astype(np.float32)
            products[part, name] = (stored[name] + up @ down).astype(np.float32)
    if version == "picture":
        assert any("add_k_proj" in name for _, name in products)
    assert len({part for part, _ in products}) == len(plain.networks(expected))
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
    changed: Any = manifest_of(folder, [tmp_path / "x.safetensors"])
    tree = changed.parameters(folder, "model", expected)[1]
    for part, network in plain.networks(expected).items():
        made = published(network.table, tree[part] if part else tree)
        for name, array in read_tensors(folder / network.folder).items():
            if name in made:
                wanted = products.get((part, name), array)
                np.testing.assert_allclose(made[name], wanted, rtol=1e-5, atol=1e-5, err_msg=name)
