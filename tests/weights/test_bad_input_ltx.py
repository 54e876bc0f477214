"""Whatever is wrong with a folder of LTX-Video, and with what it is asked for.

One table of each, as `tests/weights/test_bad_input.py` has them for Wan.
"""

import functools
import shutil

import numpy as np
import pytest

import jvdm
from jvdm import generate
from jvdm.errors import WeightsError
from jvdm.pipeline.loading import manifest_of, system_of
from jvdm.pipeline.request import prepare, request_of
from tests.weights.ltx_folder import PROMPTS, write_ltx
from tests.weights.test_bad_input import arrays, half, refused, said

SIZES = {"height": 32, "width": 64, "num_frames": 9}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_ltx(tmp_path_factory.mktemp("ltx") / "ltx", "0_9_1")


@pytest.fixture(scope="module")
def pipe(folder):
    return jvdm.load(folder, dtype="float32", progress=False)


def only(place, suffix=".safetensors"):
    """Returns what gives the one file of a component."""
    return lambda at: next((at / place).glob(f"*{suffix}"))


def cut(place):
    def harm(at):
        path = only(place)(at)
        path.write_bytes(path.read_bytes()[:-8])

    return harm


def changed(place, name, change):
    return lambda at: arrays(place, at, lambda found: found.update({name: change(found[name])}))


def with_nan(array):
    array.flat[0] = np.nan
    return array


HARMS = {
    "no transformer": (
        lambda at: only("transformer")(at).unlink(),
        "WeightsError", "transformer holds these safetensors files: none", "", "download",
    ),
    "no autoencoder": (
        lambda at: shutil.rmtree(at / "vae"),
        "WeightsError", "vae/config.json cannot be read", "No such file", "download",
    ),
    "no scheduler": (
        lambda at: shutil.rmtree(at / "scheduler"),
        "WeightsError", "scheduler_config.json cannot be read", "No such file", "download",
    ),
    "no tokenizer": (
        lambda at: shutil.rmtree(at / "tokenizer"),
        "WeightsError", "tokenizer.json does not exist", "prompts are read by it", "download",
    ),
    "truncated": (
        cut("vae"), "WeightsError", r"is truncated: \d+ bytes", "header promises", "download",
    ),
    "git-lfs pointer": (
        lambda at: only("transformer")(at).write_text("version https://git-lfs.github.com/spec\n"),
        "WeightsError", "git-lfs pointer", "never fetched", "git lfs pull",
    ),
    "no statistics of latents": (
        lambda at: arrays("vae", at, lambda found: found.pop("latents_std")),
        "WeightsError", "vae lacks latents_std", "standardised", "download",
    ),
    "statistics that are none": (
        changed("vae", "latents_mean", with_nan),
        "WeightsError", r"latents_mean is \[ ?nan", "finite", "download",
    ),
    "deviations of nothing": (
        changed("vae", "latents_std", np.zeros_like),
        "WeightsError", r"latents_std is \[ ?0", "deviation above 0", "download",
    ),
    "statistics of other latents": (
        changed("vae", "latents_mean", lambda array: array[:3]),
        "WeightsError", r"latents_mean has the shape \(3,\)", r"8 channels", "download",
    ),
    "a number that is none": (
        changed("transformer", "proj_out.bias", with_nan),
        "WeightsError", r"proj_out\.bias has 1 non-finite", "black", "again",
    ),
    "wrong shapes": (
        functools.partial(said, "transformer/config.json", attention_head_dim=12),
        "WeightsError", "transformer", "wrong shape", "config.json",
    ),
    "too few layers": (
        functools.partial(said, "transformer/config.json", num_layers=3),
        "WeightsError", "transformer", r"missing: transformer_blocks\.2\.", "config.json",
    ),
    "other channels than those of the autoencoder": (
        functools.partial(said, "transformer/config.json", in_channels=16),
        "WeightsError", "16 of transformer, 8 of vae", "decodes", "download",
    ),
    "a decoder that is told no level": (
        functools.partial(said, "vae/config.json", timestep_conditioning=False),
        "WeightsError", "vae", "not in the model: decoder", "config.json",
    ),
    "levels of the decoder that differ in number": (
        functools.partial(said, "vae/config.json", upsample_factor=[2, 2]),
        "WeightsError", "not as LTX-Video has it", "zip", "download",
    ),
    "sides that are changed in an unknown way": (
        functools.partial(said, "vae/config.json", downsample_type=["diagonal"] * 4),
        "WeightsError", "not as LTX-Video has it", "diagonal", "download",
    ),
    "unknown pipeline": (
        functools.partial(said, "model_index.json", _class_name="LTX2Pipeline"),
        "ConfigError", "a LTX2Pipeline", "does not read it", "did you mean LTXPipeline",
    ),
    "unknown transformer": (
        functools.partial(said, "transformer/config.json", _class_name="LTX2VideoTransformer3D"),
        "WeightsError", "LTX2VideoTransformer3D", "jvdm reads", "LTXVideoTransformer3DModel",
    ),
    "unknown autoencoder": (
        functools.partial(said, "vae/config.json", _class_name="AutoencoderKLLTX2Video"),
        "WeightsError", "AutoencoderKLLTX2Video", "jvdm reads", "mean AutoencoderKLLTXVideo",
    ),
    "unknown scheduler": (
        functools.partial(said, "scheduler/scheduler_config.json", _class_name="DDIMScheduler"),
        "WeightsError", "DDIMScheduler", "FlowMatchEulerDiscreteScheduler", "restore",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HARMS)
def test_weights_with_something_wrong(folder, tmp_path, capsys, case):
    harm, kind, *parts = HARMS[case]
    harm(shutil.copytree(folder, tmp_path / "ltx"))
    refused(capsys, tmp_path, ["a ball", "--weights", str(tmp_path / "ltx")], kind, *parts)


ASKED = {
    "height": (["--height=48", "--width=36"], "ShapeError", "width is 36", "of 16", "32 or 48"),
    "frames": (["--num-frames=16"], "ShapeError", "num_frames is 16", r"8n \+ 1", "9 and 17"),
    "rate": (["--fps=0"], "ConfigError", "fps is 0", "", ""),
    "text": (["--lora=/nowhere.safetensors"], "WeightsError", "/nowhere", "", ""),
}


@pytest.mark.parametrize("case", ASKED)
def test_what_is_asked_for_cannot_be_made(folder, pipe, tmp_path, capsys, monkeypatch, case):
    arguments, kind, *parts = ASKED[case]
    if not arguments[0].startswith("--lora"):
        monkeypatch.setattr(generate, "load", lambda *_, **__: pipe)  # loaded once for all
    refused(capsys, tmp_path, ["a ball", "--weights", str(folder), *arguments], kind, *parts)


def test_a_prompt_over_the_limit_shows_what_is_dropped(folder):
    manifest = manifest_of(folder)
    system = system_of(manifest)
    prompt = " ".join([PROMPTS[0]] * 128)
    job = prepare(request_of(prompt=prompt, seed=0, **SIZES), system, manifest)
    (note,) = [note for note in job.warnings if "tokens of a prompt" in note]
    assert "reads 128 tokens" in note and "does not see the end: '" in note


def test_float16_is_said_and_longer_clips_than_trained_too(folder, pipe, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "ltx")
    arrays("transformer", copy, half)
    with pytest.warns(UserWarning, match="arrays are float16.*trained in bfloat16.*use the files"):
        jvdm.load(copy, dtype="float32", progress=False)
    job = prepare(request_of(prompt="a", **SIZES | {"num_frames": 265}), pipe.system, pipe.manifest)
    assert any("265" in note and "257" in note for note in job.warnings)


def test_a_file_of_pytorch_in_the_folder_is_said(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "ltx")
    only("transformer")(copy).rename(copy / "transformer/diffusion_pytorch_model.bin")
    with pytest.raises(WeightsError, match="holds these safetensors files: none"):
        jvdm.load(copy, progress=False)
