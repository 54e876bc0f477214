"""The manifest survives the file and says what is wrong with a broken one."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import jvdm
from jvdm.errors import WeightsError
from jvdm.models import VideoDiT
from jvdm.pipeline.loading import system_of
from jvdm.samplers import ClassifierFree, ShiftedLevels, rectified_flow
from jvdm.system import Sampling
from jvdm.text.words import WordEncoder
from jvdm.weights import folder
from jvdm.world.vocabulary import WORDS

VERSION_1 = Path(__file__).with_name("version_1")

MANIFEST = folder.Manifest(
    family="nano",
    components={"vae": {"class": "jvdm.vae.video_vae:VideoVAE", "widths": [8, 16]}},
    latent_mean=(0.0, 1.5),
    latent_std=(1.0, 0.5),
    defaults=folder.Defaults(16, 24, 5, 12.0),
    trained_frames=5,
    trained_sizes=((16, 24),),
)


def test_a_manifest_comes_back_equal(tmp_path):
    folder.write_manifest(tmp_path, MANIFEST)
    assert folder.read_manifest(tmp_path) == MANIFEST


def test_missing_folder_names_the_file(tmp_path):
    with pytest.raises(WeightsError, match="none/model.json does not exist"):
        folder.read_manifest(tmp_path / "none")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: content.pop("defaults"), "is not a manifest"),
        (lambda content: content.update(version=99), "has version 99"),
        (lambda content: content.update(surprise=1), "surprise"),
        (lambda content: content.update(trained_sizes=3), "is not a manifest"),
    ],
)
def test_a_broken_manifest_is_refused(tmp_path, edit, message):
    path = folder.write_manifest(tmp_path, MANIFEST)
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=message):
        folder.read_manifest(tmp_path)


def test_a_manifest_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(WeightsError, match="is not a manifest"):
        folder.read_manifest(tmp_path)


def test_unknown_embedded_weights_are_named():
    with pytest.raises(WeightsError, match="no weights called 'huge'"):
        folder.embedded("huge")


def test_a_name_a_path_and_the_id_of_a_hub_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert folder.find(None) == folder.embedded()
    assert folder.find("nano") == folder.find(Path("nano")) == folder.embedded("nano")
    (tmp_path / "nano").mkdir()
    assert folder.find("nano") == Path("nano")  # what is here is meant
    assert folder.find("nano/weights") == Path("nano/weights")
    for installed in (True, False):
        said = "hub.*" if installed else r"jvdm\[hub\].*"
        if not installed:
            monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        said = f"no folder Wan-AI/Wan2.1-T2V.*{said}hf download Wan-AI/Wan2.1-T2V --local-dir"
        with pytest.raises(WeightsError, match=said):
            jvdm.load("Wan-AI/Wan2.1-T2V")
    with pytest.raises(WeightsError, match="a/b/c/model.json does not exist"):
        jvdm.load("a/b/c")


def test_a_folder_of_version_1_is_read_as_the_system_that_it_was():
    manifest = folder.read_manifest(VERSION_1)
    assert json.loads((VERSION_1 / "model.json").read_text())["version"] == 1
    system = system_of(manifest)
    assert system.model == VideoDiT(
        width=96, depth=3, latent_channels=8, head_dim=32, rotary_axes=(8, 12, 12), dtype="float32"
    )
    assert system.text.tokenizer.vocabulary == WORDS
    assert system.text == WordEncoder(width=64, depth=2, head_dim=32, dtype="float32")
    assert (system.process, system.prediction) == (rectified_flow(), "velocity")
    assert system.sampling == Sampling(ShiftedLevels(8, 2.0), guidance=ClassifierFree(3.0))
    assert manifest.defaults == folder.Defaults(64, 64, 9, 6.0)
    assert manifest.version == 2


def test_weights_of_version_1_make_the_same_video(tmp_path):
    for path in folder.embedded("nano").glob("*.safetensors"):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "model.json").write_bytes((VERSION_1 / "model.json").read_bytes())
    old, new = (jvdm.load(path, progress=False) for path in (tmp_path, folder.embedded("nano")))
    assert old.system == new.system
    was, now = (pipe("a red ball", seed=0, progress=False).frames for pipe in (old, new))
    assert np.array_equal(was, now)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda model: model.update({"class": "jvdm.models.video_dit:VideoDiT9"}), "update jvdm"),
        (lambda model: model.update(attention_heads=3), "VideoDiT .*cannot build.*attention_heads"),
    ],
)
def test_a_manifest_of_a_newer_jvdm_says_so(tmp_path, edit, message):
    folder.write_manifest(tmp_path, folder.read_manifest(VERSION_1))
    content = json.loads((tmp_path / "model.json").read_text())
    edit(content["components"]["model"])
    (tmp_path / "model.json").write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=message):
        system_of(folder.read_manifest(tmp_path))
