"""Whatever is wrong with weights, prompts or sizes: what, why and the fix, and exit code 2.

One table of the cases of `jvdm generate` with a small folder of Wan, as a user would meet them.
"""

import functools
import json
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

import jvdm
from jvdm import cli, generate
from jvdm.pipeline.loading import manifest_of, system_of
from jvdm.pipeline.request import prepare, request_of
from jvdm.weights.diffusers import read_tensors, write_tensors
from tests.weights.wan_folder import PROMPTS, write_wan

SIZES = {"height": 16, "width": 32, "num_frames": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_wan(tmp_path_factory.mktemp("wan") / "wan", transformer=100_000)


@pytest.fixture(scope="module")
def pipe(folder):
    return jvdm.load(folder, dtype="float32", progress=False)


def shard(at: Path) -> Path:
    return sorted((at / "transformer").glob("*-00002-of-*"))[0]


def said(place: str, at: Path, **changes) -> None:
    """Changes what a JSON file of the folder says."""
    path = at / place
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def arrays(place: str, at: Path, change) -> None:
    """Changes the arrays of a component, given as a dict that may be written."""
    tensors = {name: np.array(array) for name, array in read_tensors(at / place).items()}
    change(tensors)
    for path in (at / place).glob("*.safetensors*"):
        path.unlink()
    write_tensors(at / place, tensors)


def half(found) -> None:
    found.update({name: array.astype(np.float16) for name, array in found.items()})


def spoilt(at: Path) -> None:
    arrays("vae", at, lambda found: found["decoder.conv_out.bias"].__setitem__(0, np.nan))


HARMS = {
    "missing file": (
        lambda at: shard(at).unlink(),
        "WeightsError", "00002-of-.*does not exist", "", "",
    ),
    "missing folder of a component": (
        lambda at: shutil.rmtree(at / "vae"),
        "WeightsError", "vae/config.json cannot be read", "No such file", "download the folder",
    ),
    "truncated": (
        lambda at: shard(at).write_bytes(shard(at).read_bytes()[:-8]),
        "WeightsError", r"is truncated: \d+ bytes", r"header promises \d+", "download",
    ),
    "git-lfs pointer": (
        lambda at: shard(at).write_text("version https://git-lfs.github.com/spec/v1\n"),
        "WeightsError", "git-lfs pointer", "never fetched", "git lfs pull",
    ),
    "no safetensors file": (
        lambda at: shard(at).write_bytes(b"\0" * 64),
        "WeightsError", "00002-of-", ".", "",
    ),
    "wrong shapes": (
        functools.partial(said, "transformer/config.json", ffn_dim=32),
        "WeightsError", "transformer", r"wrong shape: .*ffn", "config.json",
    ),
    "missing arrays": (
        functools.partial(said, "transformer/config.json", num_layers=3),
        "WeightsError", "transformer", r"missing: blocks\.2\.", "config.json",
    ),
    "arrays left over": (
        functools.partial(said, "text_encoder/config.json", num_layers=1),
        "WeightsError", "text_encoder", r"not in the model: encoder\.block\.1", "config.json",
    ),
    "a number that is none": (
        spoilt, "WeightsError", r"decoder\.conv_out\.bias has 1 non-finite", "black", "again",
    ),
    "integers": (
        lambda at: arrays(
            "vae", at, lambda found: found.update({
                "decoder.conv_out.bias": found["decoder.conv_out.bias"].astype(np.int32)
            })
        ),
        "WeightsError", "decoder.conv_out.bias is int32", "floating", "",
    ),
    "unknown pipeline": (
        functools.partial(said, "model_index.json", _class_name="WanVACEPipeline"),
        "ConfigError", "a WanVACEPipeline", "does not read it", "did you mean WanPipeline",
    ),
    "unknown transformer": (
        functools.partial(said, "transformer/config.json", _class_name="WanVACETransformer3DModel"),
        "WeightsError", "WanVACETransformer3DModel", "jvdm reads", "WanTransformer3DModel",
    ),
    "unknown autoencoder": (
        functools.partial(said, "vae/config.json", _class_name="AutoencoderKLWanX"),
        "WeightsError", "AutoencoderKLWanX", "jvdm reads", "did you mean AutoencoderKLWan",
    ),
    "unknown scheduler": (
        functools.partial(said, "scheduler/scheduler_config.json", _class_name="DDIMScheduler"),
        "WeightsError", "DDIMScheduler", "UniPCMultistepScheduler", "restore",
    ),
    "a field that is missing": (
        lambda at: (at / "transformer/config.json").write_text("{}"),
        "WeightsError", "configuration", "KeyError", "download",
    ),
    "no fields": (
        lambda at: (at / "vae/config.json").write_text("[]"),
        "WeightsError", "holds no fields", "JSON object", "download",
    ),
    "two files where one is": (
        lambda at: shutil.copy(shard(at), at / "vae/more.safetensors"),
        "WeightsError", "vae holds these safetensors files", "one index lists", "download",
    ),
    "other channels than those of the autoencoder": (
        functools.partial(said, "transformer/config.json", in_channels=8, out_channels=8),
        "WeightsError", "8 of transformer, 4 of vae", "decodes", "download",
    ),
    "statistics of latents that are none": (
        functools.partial(said, "vae/config.json", latents_std=[1.0, 1.0, 0.0, 1.0]),
        "WeightsError", "latents_std is", "deviation above 0", "download",
    ),
    "no tokenizer": (
        lambda at: (at / "tokenizer/tokenizer.json").unlink(),
        "WeightsError", "tokenizer.json does not exist", "prompts are read by it", "download",
    ),
    "a tokenizer that is none": (
        lambda at: (at / "tokenizer/tokenizer.json").write_text("{}"),
        "WeightsError", "is no tokenizer", ".", "download the folder `tokenizer`",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HARMS)
def test_weights_with_something_wrong(folder, tmp_path, capsys, case):
    harm, kind, what, why, fix = HARMS[case]
    harm(shutil.copytree(folder, tmp_path / "wan"))
    refused(capsys, tmp_path, ["a ball", "--weights", str(tmp_path / "wan")], kind, what, why, fix)


ASKED = {
    "height": (["--height=20"], "ShapeError", "height is 20", "multiple of 8", "16 or 24"),
    "width": (["--width=1"], "ShapeError", "width is 1", "multiple of 8", "use 8"),
    "frames": (["--num-frames=6"], "ShapeError", "num_frames is 6", r"2n \+ 1", "5 and 7"),
    "no frames": (["--num-frames=0"], "ShapeError", "num_frames is 0", "", "1"),
    "no folder": (["--weights=/nowhere"], "WeightsError", "/nowhere", "", ""),
    "hub id": (["--weights=Wan-AI/Wan2.1"], "WeightsError", "Wan-AI/Wan2.1", "hub", "hf download"),
    "name": (["--weights=tiny_tv2"], "WeightsError", "'tiny_tv2'", "it has", "mean tiny_t2v"),
    "dtype": (["--dtype=float16"], None, "float16", "", "bfloat16"),
    "solver": (["--sampling.solver=uni"], "ConfigError", "uni", "", "did you mean unipc"),
    "lora": (["--lora=/nowhere.safetensors"], "WeightsError", "/nowhere", "", ""),
    "seed": (["--seed=-1"], "ConfigError", "seed is -1", "0 to", "another"),
    "steps": (["--num-inference-steps=0"], "ConfigError", "num_inference_steps is 0", "", ""),
    "setting": (["--guidence-scale=3"], None, "guidence", "", "guidance-scale"),
}


@pytest.mark.parametrize("case", ASKED)
def test_what_is_asked_for_cannot_be_made(folder, pipe, tmp_path, capsys, monkeypatch, case):
    arguments, kind, what, why, fix = ASKED[case]
    if not arguments[0].startswith(("--weights", "--lora", "--sampling", "--dtype")):
        monkeypatch.setattr(generate, "load", lambda *_, **__: pipe)  # loaded once for all sizes
    weights = [] if arguments[0].startswith("--weights") else ["--weights", str(folder)]
    refused(capsys, tmp_path, ["a ball", *weights, *arguments], kind, what, why, fix)


def refused(capsys, tmp_path, arguments, kind, *parts):
    """Runs `jvdm generate`; all parts of its message must be those that are expected."""
    sizes = [f"--{name.replace('_', '-')}={size}" for name, size in SIZES.items()]
    sizes = [size for size in sizes if not any(a.startswith(size.split("=")[0]) for a in arguments)]
    code = cli.main(["generate", *arguments, *sizes, "--output", str(tmp_path / "out"), "--json"])
    shown = capsys.readouterr()
    assert code == 2 and not list((tmp_path / "out").glob("*.mp4"))
    assert "Traceback" not in shown.err
    if kind is None:  # the parser of options says it
        assert all(part in shown.err + shown.out for part in parts)
        return
    error = json.loads(shown.out)["error"]
    assert error["kind"] == kind
    for name, part in zip(("what", "why", "fix"), parts, strict=True):
        assert re.search(part or ".", error[name]), error


def test_a_prompt_over_the_limit_shows_what_is_dropped(folder):
    manifest = manifest_of(folder)
    system = system_of(manifest)
    limit = system.text.tokenizer.max_tokens
    prompt = " ".join([PROMPTS[0]] * limit)
    job = prepare(request_of(prompt=prompt, seed=0, **SIZES), system, manifest)
    (note,) = [note for note in job.warnings if "tokens of a prompt" in note]
    assert f"reads {limit} tokens" in note and "does not see the end: '" in note
    tail = note.partition("end: '")[2].rstrip("'")
    assert prompt.endswith(tail) and len(tail) > 10


def test_float16_is_said_and_loads(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "wan")
    arrays("vae", copy, half)
    with pytest.warns(UserWarning, match="arrays are float16.*trained in bfloat16.*use the files"):
        pipe = jvdm.load(copy, dtype="float32", progress=False)
    assert pipe.params["vae"] is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jvdm.load(folder, dtype="float32", progress=False)
