"""Weights folders out of trained parameters: what is refused before anything is trained."""

import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.configs import nano
from jvdm.errors import ConfigError, WeightsError
from jvdm.weights import read_manifest, safetensors
from jvdm.weights.folder import EMBEDDED, Defaults
from jvdm.weights.package import Component, Packaging, check_package, write_package

DEFAULTS = Defaults(64, 64, 9, 6.0, 4, 2.0, 2.0)


class Scale(nn.Module):
    """A component of one number."""

    power: object = 1

    @nn.compact
    def __call__(self, x):
        return x * self.param("scale", nn.initializers.ones, ())


def part(name="vae", **fields):
    return {name: {name: Component(Scale(**fields), {"scale": np.full((2,), 3.0, np.float32)})}}


@pytest.fixture
def vae(tmp_path):
    folder = tmp_path / "vae"
    summary = {"latent_mean": [1.0, 2.0], "latent_std": [3.0, 4.0], "psnr": 30.0}
    write_package(folder, Packaging("some", DEFAULTS), part(), summary, ("a", "b"))
    return folder


def test_a_package_tells_what_it_holds(vae):
    manifest = read_manifest(vae)
    assert manifest.components == {"vae": {"power": 1}} and manifest.notes == {"psnr": 30.0}
    assert manifest.latent_std == (3.0, 4.0) and manifest.vocabulary == ("a", "b")
    np.testing.assert_array_equal(safetensors.load(vae / "vae.safetensors")["scale"], [3.0, 3.0])


def test_parts_go_along_and_files_of_several_components_name_them(vae, tmp_path):
    files = {"dit": part("dit")["dit"] | part("text")["text"]}
    packaging = Packaging("some", DEFAULTS, parts=(str(vae),))
    check_package(tmp_path / "all", packaging, files)
    write_package(tmp_path / "all", packaging, files, {}, ())
    assert (tmp_path / "all/vae.safetensors").read_bytes() == (vae / "vae.safetensors").read_bytes()
    manifest = read_manifest(tmp_path / "all")
    assert set(manifest.components) == {"vae", "dit", "text"} and manifest.latent_mean == (1.0, 2.0)
    assert safetensors.load(tmp_path / "all/dit.safetensors").keys() == {"dit", "text"}
    # A file that holds two components answers for both.
    again = Packaging("some", DEFAULTS, parts=(str(tmp_path / "all"),))
    check_package(tmp_path / "more", again, part("reader"))


def test_a_field_that_no_manifest_can_hold_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="field power of Scale"):
        check_package(tmp_path, Packaging("some", DEFAULTS), part(power=object()))


def test_parts_that_miss_something_are_refused(vae, tmp_path):
    packaging = Packaging("some", DEFAULTS, parts=(str(vae),))
    with pytest.raises(ConfigError, match="is to go along.*--workdir"):
        check_package(vae, packaging, part("dit"))
    whole = (vae / "vae.safetensors").read_bytes()
    (vae / "vae.safetensors").write_bytes(whole[:-1])
    with pytest.raises(WeightsError, match="truncated"):
        check_package(tmp_path / "out", packaging, part("dit"))
    (vae / "vae.safetensors").unlink()
    with pytest.raises(WeightsError, match="no weights of vae"):
        check_package(tmp_path / "out", packaging, part("dit"))
    check_package(tmp_path / "out", packaging, part("vae"))  # a new one takes its place
    shutil.rmtree(vae)
    with pytest.raises(WeightsError, match="vae/model.json does not exist"):
        check_package(tmp_path / "out", packaging, part("vae"))


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "weights").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        check_package(tmp_path / "weights", Packaging("some", DEFAULTS), part())


def test_components_are_described_from_shapes(tmp_path):
    experiment = nano.config()
    shapes = jax.eval_shape(experiment.objective.init, jax.random.key(0))
    check_package(tmp_path / "out", experiment.package, experiment.objective.components(shapes))
    assert not (tmp_path / "out").exists()
    assert jnp.float32 == jax.tree.leaves(shapes)[0].dtype and (EMBEDDED / "nano").is_dir()
