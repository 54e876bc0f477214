"""Files of the original code stand for the arrays of a folder, bit for bit."""

import re

import jax
import numpy as np
import pytest

import jvdm
from jvdm import cli, record
from jvdm.errors import ConfigError, WeightsError
from jvdm.families import FAMILIES
from jvdm.pipeline.loading import manifest_of, system_of
from jvdm.pricing import stored_shapes
from jvdm.vae import ltx_published, wan_published
from jvdm.weights import kept
from jvdm.weights.convert import published_name
from jvdm.weights.diffusers import Published, Source, read_tensors, write_tensors
from jvdm.weights.safetensors import save_stored
from jvdm.weights.single import with_files
from tests.weights.ltx_folder import write_ltx
from tests.weights.original import in_original_names
from tests.weights.wan_folder import write_wan

MODEL = "model.diffusion_model."


def renamed(table, weights):
    """Returns arrays in the names of the original code, without a prefix."""
    made = in_original_names(table.originals, weights)
    return {name.removeprefix(MODEL): array for name, array in made.items()}


def renamed_vae(table, weights):
    back = {published: original for original, published in table.originals.items()}
    made = {}
    for name, array in weights.items():
        stem = re.sub(r"\.(weight|bias)$", "", name)
        made[back.get(stem, stem) + name[len(stem) :]] = array
    return made


def published_in(folder):
    manifest = manifest_of(folder)
    assert isinstance(manifest, Published)
    return manifest


def parameters(manifest, folder):
    shapes = stored_shapes(system_of(manifest))
    return {name: manifest.parameters(folder, name, shapes[name])[1] for name in shapes}


def assert_same(tree, expected):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def spoilt(folder, *places):
    """Gives parts of a folder other arrays of the same names."""
    for place in places:
        tensors = {name: np.array(array) for name, array in read_tensors(folder / place).items()}
        for path in (folder / place).glob("*.safetensors"):
            path.unlink()
        kept = {"latents_std"}  # what is not above 0 is no deviation
        spoilt = {name: array if name in kept else -array for name, array in tensors.items()}
        write_tensors(folder / place, spoilt)


@pytest.mark.parametrize(("version", "prefix"), [("2.1", ""), ("ti2v", MODEL), ("a14b", MODEL)])
def test_files_of_wan_give_what_the_folder_gives(tmp_path, version, prefix):
    folder = write_wan(tmp_path / "wan", version)
    manifest = published_in(folder)
    expected = jax.tree.map(np.asarray, parameters(manifest, folder))
    model, vae = manifest.sources["model"], manifest.sources["vae"]
    names = {"transformer": "one_high_noise"}
    if not isinstance(model, Source):
        names["transformer_2"] = "oneLowNoise"
        model = model["high"]
    files = []
    for place, name in names.items():
        assert isinstance(model, Source)
        weights = renamed(model.table, read_tensors(folder / place))
        files.append(tmp_path / f"{name}.safetensors")
        save_stored(files[-1], {prefix + key: np.array(x) for key, x in weights.items()}, {})
    files.append(tmp_path / "vae.safetensors")
    assert isinstance(vae, Source)
    made = renamed_vae(vae.table, read_tensors(folder / "vae"))
    assert "encoder.conv1.weight" in made and "decoder.middle.1.to_qkv.bias" in made
    save_stored(files[-1], {key: np.array(x) for key, x in made.items()}, {})
    spoilt(folder, *names, "vae")
    assert_same(parameters(with_files(manifest, files), folder), expected)
    if version != "2.1":
        return
    said = list(map(str, files))
    assert cli.main(["convert", str(folder), str(tmp_path / "new"), "--files", *said]) == 0
    assert_same(parameters(published_in(tmp_path / "new"), tmp_path / "new"), expected)
    with pytest.raises(ConfigError, match="hold the arrays of vae"):
        with_files(manifest, [files[-1], files[-1]])


@pytest.mark.parametrize("version", ["0_9_0", "0_9_1", "0_9_5"])
def test_one_file_of_ltx_is_transformer_autoencoder_and_statistics(tmp_path, version):
    folder = write_ltx(tmp_path / "ltx", version)
    manifest = published_in(folder)
    expected = jax.tree.map(np.asarray, parameters(manifest, folder))
    sources = [manifest.sources[name] for name in ("model", "vae")]
    model, vae = (one.table for one in sources if isinstance(one, Source))
    made = in_original_names(model.originals, read_tensors(folder / "transformer"))
    others = {f"vae.{k}": x for k, x in renamed_vae(vae, read_tensors(folder / "vae")).items()}
    others["vae.per_channel_statistics.channel"] = np.ones(8, np.float32)
    assert "vae.per_channel_statistics.mean-of-means" in others
    file = tmp_path / "ltx-video.safetensors"
    save_stored(file, {key: np.array(x) for key, x in (made | others).items()}, {})
    spoilt(folder, "transformer", "vae")
    assert published_in(folder).latent_mean != manifest.latent_mean
    assert with_files(published_in(folder), [file]).latent_mean == manifest.latent_mean
    assert cli.main(["convert", str(folder), str(tmp_path / "new"), "--files", str(file)]) == 0
    again = published_in(tmp_path / "new")
    assert_same(parameters(again, tmp_path / "new"), expected)
    assert (again.latent_mean, again.latent_std) == (manifest.latent_mean, manifest.latent_std)


def test_a_file_that_cannot_be_used_says_why(tmp_path):
    folder = write_wan(tmp_path / "wan")
    manifest = published_in(folder)
    (tmp_path / "vae.pth").write_bytes(b"PK")
    with pytest.raises(WeightsError, match="file of PyTorch.*weights_only=True"):
        with_files(manifest, [tmp_path / "vae.pth"])
    other = tmp_path / "other.safetensors"
    save_stored(other, {"unet.conv_in.weight": np.ones(3, np.float32)}, {})
    with pytest.raises(WeightsError, match=r"such as unet\.conv_in\.weight; .*none of"):
        with_files(manifest, [other])


CODERS = {
    "wan": ("wan-1.3b-480p", wan_published.vae, wan_published.vae_names),
    "ltx": (
        "ltx-2b-512p",
        lambda config: ltx_published.vae(config, 0.0, 0.0),
        ltx_published.vae_names,
    ),
}


@pytest.mark.parametrize("family", CODERS)
def test_names_of_autoencoders_are_those_that_diffusers_makes_of_them(family):
    name, network, names = CODERS[family]
    table = names(network(dict(FAMILIES[name].vae)))
    weights = {rule.theirs: rule.theirs for rule in table.rules}
    given = renamed_vae(table, weights)
    assert sum(one != other for one, other in given.items()) > len(given) / 2
    for original, published in given.items():
        assert published_name(table, original) == published
    utilities = pytest.importorskip("diffusers.loaders.single_file_utils")
    if family == "wan":
        made = utilities.convert_wan_vae_to_diffusers({one: np.array(one) for one in given})
    else:
        given = {f"vae.{one}": other for one, other in given.items()}
        made = utilities.convert_ltx_vae_checkpoint_to_diffusers(
            {one: np.array([[one]]) for one in given}
        )
    assert {np.asarray(one).item(): published for published, one in made.items()} == given


def test_a_file_in_a_folder_is_loaded_with_the_rest_of_it(tmp_path, monkeypatch):
    """As by `jvdm convert FOLDER NEW --files FILE`, without writing anything."""
    monkeypatch.setattr(kept, "SMALLEST_BYTES", 0)
    monkeypatch.setenv("JVDM_HOME", str(tmp_path / "home"))
    folder = write_wan(tmp_path / "wan")
    expected = jvdm.load(folder, dtype="float32", progress=False)
    model = published_in(folder).sources["model"]
    assert isinstance(model, Source)
    weights = renamed(model.table, read_tensors(folder / "transformer"))
    file = folder / "wan2.1.safetensors"
    save_stored(file, {key: np.array(x) for key, x in weights.items()}, {})
    spoilt(folder, "transformer")
    pipe = jvdm.load(file, dtype="float32", progress=False)
    assert_same(pipe.params["model"], expected.params["model"])
    assert pipe.identity[str(file)] == record.digest(file)
    assert pipe.arrays["transformer"].startswith(f"{len(weights)} arrays expected")
    other = jvdm.load(folder, dtype="float32", progress=False)  # no copy of the file's is kept
    first = jax.tree.leaves(other.params["model"])[0]
    np.testing.assert_array_equal(first, -jax.tree.leaves(expected.params["model"])[0])


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({}, "such as blocks.0.x;.*text encoder.*convert FOLDER NEW --files .*alone.safetensors"),
        ({"config": '{"transformer": {}, "vae": {}}'}, "its metadata describe transformer, vae"),
        ({"config": "["}, "such as blocks.0.x; text encoder"),
    ],
)
def test_a_file_alone_says_what_else_is_needed(tmp_path, capsys, metadata, said):
    file = tmp_path / "alone.safetensors"
    save_stored(file, {"blocks.0.x": np.ones(3, np.float32)}, metadata)
    assert cli.main(["generate", "a ball", "--weights", str(file)]) == 2
    assert re.search(said, capsys.readouterr().err)
    for harm, message in (
        (lambda: file.write_bytes(file.read_bytes()[:-4]), "is truncated"),
        (file.unlink, "alone.safetensors does not exist; give a weights folder"),
    ):
        harm()
        with pytest.raises(WeightsError, match=message):
            jvdm.load(file)
    (tmp_path / "model.ckpt").write_bytes(b"PK")
    with pytest.raises(WeightsError, match="file of PyTorch"):
        jvdm.load(tmp_path / "model.ckpt")
