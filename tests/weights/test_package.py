"""Weights folders out of trained parameters: what is refused before anything is trained."""

import dataclasses
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.configs import nano
from jvdm.errors import ConfigError, WeightsError
from jvdm.weights import read_manifest, safetensors, write_manifest
from jvdm.weights.folder import EMBEDDED, Defaults
from jvdm.weights.package import Component, Packaging, check_package, write_package

DEFAULTS = Defaults(64, 64, 9, 6.0)


class Scale(nn.Module):
    """A component of one number."""

    power: object = 1

    @nn.compact
    def __call__(self, x):
        return x * self.param("scale", nn.initializers.ones, ())


def part(name="vae", **fields):
    return {name: Component(Scale(**fields), {"scale": np.full((2,), 3.0, np.float32)})}


@pytest.fixture
def vae(tmp_path):
    folder = tmp_path / "vae"
    summary = {"latent_mean": [1.0, 2.0], "latent_std": [3.0, 4.0], "psnr": 30.0}
    write_package(folder, Packaging("some", DEFAULTS), part(), summary, {"prediction": "velocity"})
    return folder


def test_a_package_tells_what_it_holds(vae):
    manifest = read_manifest(vae)
    assert manifest.component("vae") == Scale(power=1) and manifest.notes == {"psnr": 30.0}
    assert manifest.latent_std == (3.0, 4.0) and manifest.rules == {"prediction": "velocity"}
    np.testing.assert_array_equal(safetensors.load(vae / "vae.safetensors")["scale"], [3.0, 3.0])


def test_parts_go_along_and_shared_files_with_them(vae, tmp_path):
    mine = part("model") | part("text")
    packaging = Packaging("some", DEFAULTS, parts=(str(vae),))
    check_package(tmp_path / "all", packaging, mine, {})
    write_package(tmp_path / "all", packaging, mine, {}, {})
    assert (tmp_path / "all/vae.safetensors").read_bytes() == (vae / "vae.safetensors").read_bytes()
    manifest = read_manifest(tmp_path / "all")
    assert set(manifest.components) == {"vae", "model", "text"}
    assert manifest.latent_mean == (1.0, 2.0) and manifest.rules == {"prediction": "velocity"}
    # A file that holds two components, as those of layout 1, goes along for both.
    shared = dataclasses.replace(
        manifest, files={"text": "two.safetensors#a", "model": "two.safetensors#b"}
    )
    write_manifest(tmp_path / "all", shared)
    params = mine["text"].params
    safetensors.save(tmp_path / "all/two.safetensors", {"a": params, "b": params}, dtype="float32")
    again = Packaging("some", DEFAULTS, parts=(str(tmp_path / "all"),))
    write_package(tmp_path / "more", again, part("reader"), {}, {})
    taken = read_manifest(tmp_path / "more")
    _, tree = taken.parameters(tmp_path / "more", "model")
    np.testing.assert_array_equal(tree["scale"], [3.0, 3.0])


def test_a_field_that_no_manifest_can_hold_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="vae.power is <object"):
        check_package(tmp_path, Packaging("some", DEFAULTS), part(power=object()), {})


def test_parts_that_miss_something_are_refused(vae, tmp_path):
    packaging = Packaging("some", DEFAULTS, parts=(str(vae),))
    with pytest.raises(ConfigError, match="is to go along.*--workdir"):
        check_package(vae, packaging, part("model"), {})
    whole = (vae / "vae.safetensors").read_bytes()
    (vae / "vae.safetensors").write_bytes(whole[:-1])
    with pytest.raises(WeightsError, match="truncated"):
        check_package(tmp_path / "out", packaging, part("model"), {})
    (vae / "vae.safetensors").unlink()
    with pytest.raises(WeightsError, match="no weights of vae"):
        check_package(tmp_path / "out", packaging, part("model"), {})
    check_package(tmp_path / "out", packaging, part("vae"), {})  # a new one takes its place
    shutil.rmtree(vae)
    with pytest.raises(WeightsError, match="vae/model.json does not exist"):
        check_package(tmp_path / "out", packaging, part("vae"), {})


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "weights").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        check_package(tmp_path / "weights", Packaging("some", DEFAULTS), part(), {})


def test_components_are_described_from_shapes(tmp_path):
    experiment = nano.config()
    shapes = jax.eval_shape(experiment.objective.init, jax.random.key(0))
    check_package(tmp_path / "out", experiment.package, experiment.objective.components(shapes), {})
    assert not (tmp_path / "out").exists()
    assert jnp.float32 == jax.tree.leaves(shapes)[0].dtype and (EMBEDDED / "nano").is_dir()
