"""Single files of LTX-Video outside a folder of Diffusers, with the text encoder of another."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvdm
from jvdm import cli
from jvdm.errors import ConfigError, WeightsError
from jvdm.families import FAMILIES
from jvdm.pipeline.loading import manifest_of, place_of, system_of
from jvdm.samplers import ExplicitLevels
from jvdm.vae import ltx_published
from jvdm.vae.ltx_single import vae_config
from jvdm.weights.convert import published
from jvdm.weights.diffusers import Published, Source, read_tensors
from jvdm.weights.safetensors import save_stored
from tests.parity.references import Reference
from tests.weights.ltx_folder import VERSIONS, write_ltx
from tests.weights.original import in_original_names
from tests.weights.test_single import assert_same, parameters, published_in, renamed_vae

ltx = importlib.import_module("jvdm.configs.families.ltx")
HEADS = {"transformer": {"num_attention_heads": 4}}
STEPS = [1.0, 0.9937, 0.725]


def original(folder):
    """Returns transformer and autoencoder of a folder as one file has them."""
    sources = published_in(folder).sources
    model, vae = (
        one.table for one in map(sources.get, ("model", "vae")) if isinstance(one, Source)
    )
    made = in_original_names(model.originals, read_tensors(folder / "transformer"))
    coder = renamed_vae(vae, read_tensors(folder / "vae"))
    made |= {f"vae.{name}": array for name, array in coder.items()}
    return {name: np.array(array) for name, array in made.items()}


def write_file(path, arrays, config):
    path.parent.mkdir(exist_ok=True)
    metadata = {} if config is None else {"config": json.dumps(config)}
    save_stored(path, arrays, metadata)
    return path


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    made = {}

    def folder(version):
        if version not in made:
            made[version] = write_ltx(tmp_path_factory.mktemp("ltx"), version)
        return made[version]

    return folder


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("JVDM_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_file_and_a_text_encoder_are_what_the_folder_is(folder_of, tmp_path, version):
    folder = folder_of(version)
    file = write_file(tmp_path / "alone/ltxv.safetensors", original(folder), HEADS)
    place, files = place_of(f"{file}:{folder}")
    made, expected = manifest_of(place, files=files), published_in(folder)
    assert isinstance(made, Published)
    system, whole = system_of(made), system_of(expected)
    assert (system.model, system.vae) == (whole.model, whole.vae)
    assert system.process == whole.process and system.sampling == whole.sampling
    assert (made.latent_mean, made.latent_std) == (expected.latent_mean, expected.latent_std)
    assert_same(parameters(made, place), parameters(expected, folder))
    assert place_of(f"{file}:{folder}")[0] == place, "it is kept"


def test_it_is_loaded_and_written_as_the_folder_is(folder_of, tmp_path):
    folder = folder_of("0_9_1")
    file = write_file(tmp_path / "alone/ltxv.safetensors", original(folder), HEADS)
    pipe = jvdm.load(f"{file}:{folder}", dtype="float32", progress=False)
    assert_same(pipe.params, jvdm.load(folder, dtype="float32", progress=False).params)
    assert {str(file), "text_encoder/model.safetensors"} <= pipe.identity.keys()
    words = ["convert", f"{file}:{folder}", str(tmp_path / "new")]
    assert cli.main([*words, "--to", "diffusers"]) == 0
    made, expected = manifest_of(tmp_path / "new"), published_in(folder)
    assert isinstance(made, Published) and made.components.keys() == expected.components.keys()
    assert_same(parameters(made, tmp_path / "new"), parameters(expected, folder))
    assert (made.latent_mean, made.latent_std) == (expected.latent_mean, expected.latent_std)


def test_a_text_encoder_beside_a_file_needs_no_name(folder_of, tmp_path):
    """The files of T5 as its own repository has them: no folder for each part."""
    folder, place = folder_of("0_9_5"), tmp_path / "flat"
    file = write_file(place / "ltxv.safetensors", original(folder), HEADS)
    for part in ("text_encoder", "tokenizer"):
        for path in (folder / part).iterdir():
            (place / path.name).write_bytes(path.read_bytes())
    found, files = place_of(file)
    made = manifest_of(found, files=files)
    assert isinstance(made, Published) and not (found / "text_encoder" / file.name).exists()
    assert_same(parameters(made, found), parameters(published_in(folder), folder))


@pytest.mark.parametrize("version", VERSIONS)
def test_arrays_say_the_configuration_that_diffusers_has(version):
    reference = Reference(VERSIONS[version][1])
    network = ltx_published.vae(reference.config, 0.05, 0.025)
    table = ltx_published.vae_names(network)
    shapes = renamed_vae(table, {name: tuple(shape) for name, shape in reference.shapes.items()})
    made = vae_config(shapes, {})
    expected = {name: value for name, value in reference.config.items() if value is not None}
    assert expected.keys() <= made.keys()
    assert {name: made[name] for name in expected} == expected


def test_a_file_of_the_published_size_is_read_of_its_shapes():
    """2B of 0.9.0: the widths of levels differ, and so there are blocks that change them."""
    config = dict(FAMILIES["ltx-2b-512p"].vae)
    network = ltx_published.vae(config, 0.05, 0.025)
    table = ltx_published.vae_names(network)
    frame = jnp.zeros((1, 1, 64, 64, 3))
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), frame)["params"])
    arrays = published(table, jax.tree.map(lambda leaf: np.broadcast_to(0.0, leaf.shape), shapes))
    made = vae_config(renamed_vae(table, {name: x.shape for name, x in arrays.items()}), {})
    assert ltx_published.vae(made, 0.05, 0.025) == network


def test_what_arrays_do_not_say_is_read_of_the_metadata(folder_of, tmp_path):
    blocks = [["res_x", {"num_layers": 1}], ["compress_all", {"residual": False}]]
    config = {
        "transformer": {"num_attention_heads": 2, "causal_temporal_positioning": True},
        "vae": {"decoder_blocks": [*blocks, blocks[1], blocks[1]], "causal_decoder": True},
        "allowed_inference_steps": STEPS,
    }
    arrays = original(folder_of("0_9_1"))
    file = write_file(tmp_path / "alone/ltxv.safetensors", arrays, config)
    place, files = place_of(f"{file}:{folder_of('0_9_0')}")
    system = system_of(manifest_of(place, files=files))
    assert system.model.head_dim == 20 and system.model.from_first
    assert system.vae.causal and not any(up.residual for up in system.vae.ups)
    assert system.sampling.levels == ExplicitLevels(tuple(STEPS))
    assert float(system.sampling.guidance.scale) == 1.0
    early = {**HEADS, "scheduler": {"target_shift_terminal": 0.2}}
    write_file(file, arrays, early)
    place, files = place_of(f"{file}:{folder_of('0_9_0')}")
    levels = np.asarray(system_of(manifest_of(place, files=files)).sampling.levels())
    assert abs(levels[-2] - 0.2) < 1e-6


def without(*parts):
    return lambda arrays: {
        name: array for name, array in arrays.items() if not any(part in name for part in parts)
    }


def with_sound(arrays):
    return arrays | {"model.diffusion_model.audio_patchify_proj.weight": np.ones(2, np.float32)}


BAD = {
    "no autoencoder": (without("vae."), HEADS, WeightsError, "the transformer of LTX-Video alone"),
    "no decoder": (without("decoder"), HEADS, WeightsError, "autoencoder in the file is none of"),
    "no last level": (without("up_blocks.6"), HEADS, WeightsError, "holds another model; 83"),
    "no statistics": (without("statistics"), HEADS, WeightsError, "lacks vae.per_channel"),
    "heads of no size": (
        dict,
        {"transformer": {"num_attention_heads": 7}},
        WeightsError,
        "7 heads",
    ),
    "no heads": (dict, {"transformer": {"num_attention_heads": 0}}, WeightsError, "0 heads"),
    "words": (dict, {"transformer": "two"}, WeightsError, "metadata .* not as its arrays are"),
    "levels that rise": (
        dict,
        {**HEADS, "allowed_inference_steps": [0.5, 1.0]},
        ConfigError,
        "do not desc",
    ),
    "LTX-2": (with_sound, HEADS, WeightsError, "text encoder, tokenizer, levels"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_is_not_whole_is_refused(folder_of, tmp_path, case):
    harm, config, kind, message = BAD[case]
    file = tmp_path / "alone/ltxv.safetensors"
    write_file(file, harm(original(folder_of("0_9_1"))), config)
    with pytest.raises(kind, match=message):
        jvdm.load(f"{file}:{folder_of('0_9_1')}", progress=False)


def test_a_text_encoder_that_is_none_is_refused(folder_of, tmp_path, capsys):
    folder = folder_of("0_9_1")
    file = write_file(tmp_path / "alone/ltxv.safetensors", original(folder), HEADS)
    assert cli.main(["generate", "a ball", "--weights", str(file)]) == 2
    said = capsys.readouterr().err
    assert "holds no text_encoder (config.json" in said and f"{file}:FOLDER" in said
    (tmp_path / "half").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "half" / name).write_bytes((folder / "text_encoder" / name).read_bytes())
    assert cli.main(["generate", "a ball", "--weights", f"{file}:{tmp_path / 'half'}"]) == 2
    assert "holds no tokenizer (tokenizer.json, spiece.model)" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="lies in no folder of Diffusers"):
        jvdm.load(f"{write_file(folder / 'x.safetensors', {}, None)}:{folder}")
