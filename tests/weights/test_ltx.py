"""Folders of LTX-Video: a small one makes what the reference makes, and comes back."""

import functools
import importlib
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvdm
from jvdm import cli
from jvdm.errors import ConfigError, DeviceMemoryError, WeightsError
from jvdm.models import Conditions, TextStates
from jvdm.pipeline import programs
from jvdm.pipeline.loading import manifest_of, system_of
from jvdm.pipeline.request import request_of
from jvdm.pricing import stored_shapes
from jvdm.samplers import Call, Euler, LinearQuadraticLevels
from jvdm.vae import tiling
from jvdm.weights.diffusers import Published, read_tensors
from tests.parity.references import Reference, off
from tests.text.pieces import SPIECE
from tests.weights.ltx_folder import (
    CLASSES,
    NOISE,
    PICTURE,
    PLAIN,
    PROMPTS,
    SCHEDULER,
    STATISTICS,
    write_ltx,
)

ltx = importlib.import_module("jvdm.configs.families.ltx")
SIZES = {"height": 32, "width": 64, "num_frames": 17}
QUIETLY = pytest.mark.filterwarnings("ignore:.*was not trained")


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    return functools.cache(lambda version: write_ltx(tmp_path_factory.mktemp("ltx"), version))


@pytest.fixture(scope="module")
def pipe_of(folder_of):
    return functools.cache(
        lambda version: jvdm.load(folder_of(version), dtype="float32", progress=False)
    )


def latents(pipe, **given):
    settings = {"latents": NOISE, "num_inference_steps": 4, "seed": 0, "progress": False}
    return pipe(PROMPTS, **SIZES, **settings, **given, output_type="latent")


@QUIETLY
def test_the_pipeline_makes_what_the_reference_makes(pipe_of):
    pipe, made = pipe_of("0_9_0"), Reference("ltx_pipeline").outputs
    ids, _ = pipe.system.text.read([*PROMPTS, "", ""])
    np.testing.assert_array_equal(ids, made["ids"])
    x = latents(pipe)
    assert off(x, made["latents"]) < 1e-4
    frames = pipe.decode(x)[:1, ::8].astype(np.float32)
    expected = np.round(np.clip(made["frames"].transpose(0, 2, 3, 4, 1) + 1, 0, 2) * 127.5)
    assert np.abs(frames - expected).max() <= 1


@QUIETLY
def test_a_given_picture_is_a_column_at_level_0(pipe_of):
    for version, name in (("0_9_0", "ltx_image_pipeline"), ("0_9_5", "ltx_later_image_pipeline")):
        made = latents(pipe_of(version), image=PICTURE)
        assert off(made, Reference(name).outputs["latents"]) < 1e-4
        without = Reference(name.replace("_image", "")).outputs["latents"]
        assert off(made[:, 1:], without[:, 1:]) > 1e-2


@QUIETLY
def test_the_later_pipeline_has_places_and_levels_of_its_own(pipe_of):
    pipe = pipe_of("0_9_5")
    rules = pipe.system.sampling
    assert rules.levels == LinearQuadraticLevels(50) and rules.solver == Euler()
    assert pipe.system.model.from_first and pipe.system.text.tokenizer.max_tokens == 256
    assert off(latents(pipe), Reference("ltx_later_pipeline").outputs["latents"]) < 1e-4


@QUIETLY
def test_the_frame_rate_and_the_size_reach_network_and_levels(pipe_of):
    prepare = pipe_of("0_9_0").prepare
    jobs = [prepare(request_of(prompt="a", **SIZES, fps=fps)) for fps in (25, 29.97)]
    assert [job.system.model.fps for job in jobs] == [25.0, 29.97]
    large = prepare(request_of(prompt="a", height=64, width=64, num_frames=33))
    assert jobs[0].system.sampling.levels.tokens == 24
    assert large.system.sampling.levels.tokens == 5 * 4 * 4
    near, far = (float(job.matrix.levels[1]) for job in (jobs[0], large))
    assert far > near


def test_the_folder_says_how_videos_are_made(pipe_of):
    pipe = pipe_of("0_9_0")
    levels = np.asarray(pipe.system.sampling.levels())
    assert len(levels) == 51 and levels[0] == 1 and abs(levels[-2] - 0.1) < 1e-6
    np.testing.assert_allclose(pipe.manifest.latent_std, STATISTICS["latents_std"])
    np.testing.assert_allclose(pipe.params["vae"].mean, STATISTICS["latents_mean"])
    assert repr(pipe) == "Pipeline(ltx, 161 frames of 512x704, cpu)"
    assert float(pipe.system.process.model_time(jnp.float32(0.5))) == 500


def test_a_video_that_cannot_be_decoded_at_once_is_decoded_in_pieces(pipe_of, monkeypatch):
    pipe = pipe_of("0_9_0")
    expected, calls = pipe.decode(NOISE), []

    def decode(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: too little")

    def small(*given):
        calls.append(given[2].shape)
        return passed(*given)

    passed = tiling._passed
    monkeypatch.setattr(programs, "decode", decode)
    monkeypatch.setattr(tiling, "_passed", small)
    made = pipe.decode(NOISE)
    assert np.abs(made.astype(int) - expected).max() <= 1 and made.shape == expected.shape
    assert set(calls) == {(2, 3, 2, 4, 8)}
    monkeypatch.setattr(tiling, "_passed", decode)
    with pytest.raises(DeviceMemoryError, match="2 videos of 17 frames of 32x64 pixels"):
        pipe.decode(NOISE)


@pytest.mark.parametrize("version", ["0_9_0", "0_9_1", "0_9_5"])
def test_it_comes_back_bit_by_bit(folder_of, tmp_path, version):
    folder = folder_of(version)
    manifest = manifest_of(folder)
    assert isinstance(manifest, Published)
    system = system_of(manifest)
    assert system.vae.level == (None if version == "0_9_0" else 0.05)
    shapes = stored_shapes(system)
    params = {name: manifest.parameters(folder, name, shapes[name])[1] for name in shapes}
    manifest.write(tmp_path / "again", params, folder)
    assert manifest_of(tmp_path / "again").rules == manifest.rules
    for place in CLASSES:
        before, after = (read_tensors(where / place) for where in (folder, tmp_path / "again"))
        assert before.keys() == after.keys()
        for name, array in before.items():
            np.testing.assert_array_equal(after[name], array, strict=True)


def test_what_was_converted_is_the_same_system_and_goes_back(folder_of, tmp_path):
    """Statistics of latents lie in the files of the autoencoder, which are not converted."""
    folder, ours, back = folder_of("0_9_1"), tmp_path / "ours", tmp_path / "back"
    assert cli.main(["convert", str(folder), str(ours)]) == 0
    before, after = manifest_of(folder), manifest_of(ours)
    assert after.latent_std == before.latent_std and after.latent_mean == before.latent_mean
    assert system_of(after).vae == system_of(before).vae
    assert cli.main(["convert", str(ours), str(back), "--to", "diffusers"]) == 0
    vae, again = (read_tensors(where / "vae") for where in (folder, back))
    assert vae.keys() == again.keys()
    assert all(np.array_equal(again[name], array) for name, array in vae.items())


def test_either_file_of_a_tokenizer_is_read(tmp_path):
    folder = write_ltx(tmp_path)
    (folder / "tokenizer/tokenizer.json").unlink()
    (folder / "tokenizer/spiece.model").write_bytes(SPIECE.read_bytes())
    tokenizer = manifest_of(folder).component("text").tokenizer
    assert tokenizer.path.endswith("spiece.model") and tokenizer.encode("a ball")[0][-1] == 0


def test_the_configuration_of_the_13b_model_is_read():
    model = ltx.transformer(
        {
            "num_attention_heads": 32,
            "attention_head_dim": 128,
            "num_layers": 48,
            "in_channels": 128,
        }
    )
    assert (model.width, model.head_dim, model.mlp_width) == (4096, 128, 16384)
    assert model.strides == (8, 32, 32)
    x = jnp.zeros((1, 1, 1, 1, 128))
    told = Conditions(TextStates(jnp.zeros((1, 1, 4096)), jnp.ones(1, jnp.int32)))
    given = (jax.random.key(0), x, Call.at(jnp.zeros((1, 1))), told)
    shapes = jax.eval_shape(model.init, *given)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 13_042_569_344


def test_what_is_not_of_ltx_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="LTX-Video is sampled by"):
        ltx.sampling({"_class_name": "UniPCMultistepScheduler"}, later=False)
    with pytest.raises(WeightsError, match="use_dynamic_shifting, shift_terminal"):
        ltx.sampling(SCHEDULER, later=True)
    folder = write_ltx(tmp_path)
    (folder / "vae/config.json").write_text(json.dumps({"latent_channels": 8}))
    with pytest.raises(WeightsError, match="KeyError"):
        manifest_of(folder)


def test_an_upsampler_beside_the_13b_model_is_named_as_not_read(tmp_path):
    """0.9.7 and 0.9.8: heads of another size, an index with classes, and a second pipeline."""
    folder = write_ltx(tmp_path / "ltx", "0_9_5")
    parts = {name: ["diffusers", kind] for name, kind in CLASSES.items()}
    parts |= {"scheduler": ["diffusers", PLAIN["_class_name"]], "tokenizer": ["transformers", "T"]}
    index = {"_class_name": "LTXConditionPipeline", **parts}
    (folder / "model_index.json").write_text(json.dumps(index))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = manifest_of(folder)
    more = {"latent_upsampler": ["ltx", "LTXLatentUpsamplerModel"]}
    (folder / "model_index.json").write_text(json.dumps(index | more))
    upscaler = folder / "spatial_upscaler"
    upscaler.mkdir()
    (upscaler / "model_index.json").write_text('{"_class_name": "LTXLatentUpsamplePipeline"}')
    said = r"latent_upsampler \(LTXLatentUpsamplerModel\), .*\(LTXLatentUpsamplePipeline\) is not"
    with pytest.warns(UserWarning, match=said):
        pipe = jvdm.load(folder, dtype="float32", progress=False)
    assert pipe.manifest.components == expected.components
    with pytest.raises(ConfigError, match="LTXLatentUpsamplePipeline; jvdm does not read it"):
        manifest_of(upscaler)
