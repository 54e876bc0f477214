"""Folders of Diffusers: a small Wan is loaded, makes what the reference makes, and comes back."""

import importlib
import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jvdm
from jvdm import cli
from jvdm.errors import ConfigError, ShapeError, WeightsError
from jvdm.pictures import Canvas, told_of
from jvdm.pictures import place as placed
from jvdm.pipeline.loading import manifest_of, ready, system_of
from jvdm.pipeline.request import prepare, request_of
from jvdm.pricing import stored_shapes
from jvdm.samplers import Euler, TwoScales, UniPC
from jvdm.weights.diffusers import Published, read_tensors
from tests.parity.references import Reference, off
from tests.weights.wan_folder import (
    NOISE,
    PICTURE,
    PROMPTS,
    SCHEDULER,
    VERSIONS,
    parts,
    sizes_of,
    write_wan,
)

wan = importlib.import_module("jvdm.configs.families.wan")
MADE = Reference("wan_pipeline").outputs
SIZES = {"height": 16, "width": 32, "num_frames": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_wan(tmp_path_factory.mktemp("wan"), transformer=100_000)


@pytest.fixture(scope="module")
def pipe(folder):
    return jvdm.load(folder, dtype="float32", progress=False)


@pytest.mark.filterwarnings("ignore:.*was not trained")
def test_the_pipeline_makes_what_the_reference_makes(pipe):
    ids, _ = pipe.system.text.read([*PROMPTS, "", ""])
    np.testing.assert_array_equal(ids, MADE["ids"])
    settings = {"latents": NOISE, "num_inference_steps": 4, "seed": 0, "progress": False}
    latents = pipe(PROMPTS, **SIZES, **settings, output_type="latent")
    assert off(np.transpose(latents, (0, 4, 1, 2, 3)), MADE["latents"]) < 1e-4  # 1.2e-5 measured
    frames = pipe.decode(latents).astype(np.float32)
    expected = np.round(np.clip(MADE["frames"].transpose(0, 2, 3, 4, 1) + 1, 0, 2) * 127.5)
    assert np.abs(frames - expected).max() <= 1


@pytest.mark.filterwarnings("ignore:.*was not trained")
def test_the_first_frame_of_wan_2_2_is_a_column_of_the_matrix(tmp_path):
    """The networks and numbers of `WanImageToVideoPipeline`, with and without a picture."""
    made = Reference("wan_ti2v").outputs
    pipe = jvdm.load(write_wan(tmp_path, "ti2v"), dtype="float32", progress=False)
    assert repr(pipe) == "Pipeline(wan, 121 frames of 704x1280, cpu)"
    settings: dict[str, Any] = {"latents": NOISE, "num_inference_steps": 4, "seed": 0}
    settings |= {"progress": False, **sizes_of("ti2v")}
    for name, given in (("latents", {}), ("of_picture", {"image": PICTURE})):
        latents = pipe(PROMPTS, output_type="latent", **settings, **given)
        off_by = off(np.transpose(latents, (0, 4, 1, 2, 3)), made[name])
        assert off_by < 1e-4  # 1.5e-5 measured


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*was not trained")
def test_two_networks_and_two_scales_take_turns(tmp_path):
    folder = write_wan(tmp_path, "a14b")
    pipe = jvdm.load(folder, dtype="float32", progress=False)
    assert pipe.system.sampling.guidance == TwoScales(4.0, 3.0, 0.875)
    settings: dict[str, Any] = {"latents": NOISE, "num_inference_steps": 4, "seed": 0}
    settings |= {"progress": False, "guidance_scale": 5.0, "guidance_scale_2": 3.0, **SIZES}
    latents = pipe(PROMPTS, output_type="latent", **settings)
    expected = Reference("wan_a14b").outputs["latents"]
    assert off(np.transpose(latents, (0, 4, 1, 2, 3)), expected) < 1e-4  # 1.0e-5 measured
    half = ready(pipe.params["model"], pipe.system.model.clone(dtype="bfloat16"))["low"]
    assert half["time_out"]["kernel"].dtype == jnp.float32  # as in one network
    assert half["patch_in"]["kernel"].dtype == jnp.bfloat16
    edit(folder, "transformer_2", num_layers=1)
    with pytest.raises(WeightsError, match="networks of different sizes"):
        manifest_of(folder)


@pytest.mark.filterwarnings("ignore:.*was not trained")
def test_pictures_are_told_beside_the_noise(tmp_path):
    made = Reference("wan_a14b_of_pictures").outputs
    pipe = jvdm.load(write_wan(tmp_path, "a14b of a picture"), dtype="float32", progress=False)
    assert pipe.system.sampling.guidance == TwoScales(3.5, 3.5, 0.9)
    settings: dict[str, Any] = {"latents": NOISE, "num_inference_steps": 4, "seed": 0}
    settings |= {"progress": False, "guidance_scale": 5.0, "guidance_scale_2": 3.0, **SIZES}
    pictures = {"image": PICTURE[:16, :32], "last_image": PICTURE[16:, 32:]}
    for name, given in (("of_picture", {"image": pictures["image"]}), ("of_two", pictures)):
        latents = pipe(PROMPTS, output_type="latent", **settings, **given)
        off_by = off(np.transpose(latents, (0, 4, 1, 2, 3)), made[name])
        assert off_by < 1e-4  # 1.9e-5 measured
    for given in ({}, {"video": np.stack([PICTURE[:16, :32]] * 5)}):
        with pytest.raises(ConfigError, match="makes a video of its first picture"):
            pipe(PROMPTS, output_type="latent", **settings, **given)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "name"), [("picture", "wan_of_picture"), ("two pictures", "wan_between")]
)
@pytest.mark.filterwarnings("ignore:.*was not trained")
def test_pictures_are_seen_by_an_encoder_too(tmp_path, version, name):
    """The networks and numbers of `WanImageToVideoPipeline` of Wan 2.1: I2V, and FLF2V."""
    both = version == "two pictures"
    pipe = jvdm.load(write_wan(tmp_path, version), dtype="float32", progress=False)
    assert repr(pipe) == f"Pipeline(wan, 81 frames of {'720x1280' if both else '480x832'}, cpu)"
    assert pipe.system.sampling.levels.num_steps == (50 if both else 40)
    assert pipe.arrays["image_encoder"] == "37 arrays expected, 37 loaded, 18 unused"
    settings: dict[str, Any] = {"latents": NOISE, "num_inference_steps": 4, "seed": 0, **SIZES}
    given = {"image": PICTURE[:16, :32]} | ({"last_image": PICTURE[16:, 32:]} if both else {})
    job: Any = pipe.prepare(request_of(prompt=PROMPTS, **settings, **given))
    latents = pipe.sample(job)
    expected = Reference(name).outputs["latents"]
    off_by = off(np.transpose(latents, (0, 4, 1, 2, 3)), expected)
    assert off_by < 1e-4  # 6.7e-6 and 1.3e-5 measured
    # Every video may have its own.
    flipped = {key: np.stack([picture, picture[::-1]]) for key, picture in given.items()}
    own: Any = pipe.prepare(request_of(prompt=PROMPTS, **settings, **flipped)).pictures
    assert job.pictures.shape == (1, 1 + both, 28, 28, 3)
    np.testing.assert_array_equal(own[0], job.pictures[0])
    assert not np.allclose(own[1], own[0]) and own.shape[0] == 2
    # As many pictures as the network has been shown.
    wrong = {"image": PICTURE[:16, :32]} | ({} if both else {"last_image": PICTURE[16:, 32:]})
    with pytest.raises(ConfigError, match="reads the first and the last" if both else "alone"):
        pipe.prepare(request_of(prompt=PROMPTS, **settings, **wrong))


def test_every_video_ends_with_its_last_picture_whatever_its_length(tmp_path):
    manifest = manifest_of(write_wan(tmp_path, "two pictures"))
    system = system_of(manifest)
    pictures = {"image": PICTURE[:16, :32], "last_image": PICTURE[16:, 32:]}

    def job(**settings):
        asked = request_of(**{"prompt": "a", "height": 16, "width": 32, **pictures, **settings})
        return prepare(asked, system, manifest)

    for count in range(5, 82, system.vae.strides[0]):
        canvas = Canvas(system.vae, 1, count, 16, 32, 16.0)
        told = told_of(placed(request_of(**pictures), canvas, edits=False)[0], canvas)
        latent_frames = system.vae.latent_frames(count)
        assert told.frames.shape[1] == count == system.vae.num_frames(latent_frames)
        assert told.columns == (0, latent_frames - 1)
        for end, picture in ((0, pictures["image"]), (-1, pictures["last_image"])):
            np.testing.assert_array_equal(told.frames[0, end], picture / np.float32(255))
        np.testing.assert_array_equal(told.frames[0, 1:-1], 0.5)
    with pytest.raises(ShapeError, match=r"num_frames is 80; .*fit: 79 and 81"):
        job(num_frames=80)
    with pytest.raises(ShapeError, match="height is 20; it must be a multiple of 8; use 16 or 24"):
        job(height=20)
    with pytest.raises(ShapeError, match="every frame would be given"):
        placed(request_of(**pictures), Canvas(system.vae, 1, 3, 16, 32, 16.0), edits=False)
    said = "; ".join(job(prompt="a " * 600 + "red ball", num_frames=5).warnings)
    assert "reads 512 tokens" in said and "does not see the end" in said and "red ball" in said
    assert "was not trained" in said and "480x832" in said


@pytest.mark.parametrize(
    ("place", "changes", "said"),
    [
        ("transformer", {"image_dim": 32}, "5 states of 24 features.*reads any of 32"),
        ("transformer", {"pos_embed_seq_len": 514}, "5 states of 24 features.*reads 514 of 24"),
        ("image_encoder", {"hidden_act": "relu"}, "known are gelu, quick_gelu"),
        ("image_encoder", {"num_hidden_layers": 2}, "not in the model"),
    ],
)
def test_a_vision_encoder_of_another_kind_is_refused(tmp_path, place, changes, said):
    folder = write_wan(tmp_path, "picture")
    edit(folder, place, **changes)
    with pytest.raises(WeightsError, match=said):
        manifest = manifest_of(folder)
        assert isinstance(manifest, Published)
        shapes = stored_shapes(system_of(manifest))
        manifest.parameters(folder, "vision", shapes["vision"])


def test_the_folder_says_how_videos_are_made(pipe, tmp_path):
    rules = pipe.system.sampling
    assert rules.solver == UniPC(2) and rules.levels.num_steps == 50 and rules.guidance.scale == 5
    levels = np.asarray(rules.levels())
    assert levels[0] == np.float32(1 - 1e-6) and abs(levels[25] - 0.75) < 1e-3  # 3/2 over 2
    process, sampling = wan.sampling(
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 5.0}
    )
    assert sampling.solver == Euler() and process.model_time(jnp.float32(0.5)) == 500
    assert pipe.manifest.latent_std == (1.5, 0.7, 2.0, 1.0)
    assert repr(pipe) == "Pipeline(wan, 81 frames of 480x832, cpu)"
    assert set(pipe.identity) > {"model_index.json", "vae/config.json"}
    assert len([name for name in pipe.identity if name.startswith("transformer/diff")]) == 5


def test_the_command_makes_its_latents(folder, tmp_path, capsys):
    sizes = [
        part for name, size in SIZES.items() for part in (f"--{name.replace('_', '-')}", f"{size}")
    ]
    arguments = ["generate", PROMPTS[0], "--weights", str(folder), *sizes, "--dtype", "float32"]
    arguments += ["--num-inference-steps", "4", "--seed", "1", "--output", str(tmp_path), "--json"]
    # Two videos without frames: the programs of the test above.
    assert cli.main([*arguments, "--num-videos", "2", "--latents-only"]) == 0
    record, _ = json.loads(capsys.readouterr().out)["videos"]
    assert record["weights"]["family"] == "wan" and record["settings"]["fps"] == 16


@pytest.mark.parametrize("version", VERSIONS)
def test_it_comes_back_bit_by_bit(tmp_path, version):
    folder = write_wan(tmp_path / "once", version)
    manifest = manifest_of(folder)
    assert isinstance(manifest, Published)
    shapes = stored_shapes(system_of(manifest))
    params = {name: manifest.parameters(folder, name, shapes[name])[1] for name in shapes}
    manifest.write(tmp_path / "again", params, folder)
    again = manifest_of(tmp_path / "again")
    assert (
        again.rules == manifest.rules and again.components["model"] == manifest.components["model"]
    )
    for place in parts(version):
        before, after = (read_tensors(where / place) for where in (folder, tmp_path / "again"))
        assert before.keys() == after.keys()
        for name, array in before.items():
            np.testing.assert_array_equal(after[name], array)


def edit(folder, place, **changes):
    path = folder / place / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_another_scheduler_is_refused():
    for change in ({"_class_name": "DDIMScheduler"}, {"prediction_type": "epsilon"}):
        with pytest.raises(WeightsError, match="Wan is sampled by"):
            wan.sampling({**SCHEDULER, **change})
