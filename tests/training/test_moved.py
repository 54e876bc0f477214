"""A run goes on wherever its clips and weights lie, if they are the same; and not with others."""

import dataclasses
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.data.host import HostSource
from jvdm.data.video_folder import VideoFolder
from jvdm.errors import CheckpointError, ConfigError
from jvdm.experiment import Experiment
from jvdm.parallel.mesh import data_mesh
from jvdm.text.tokenizer import WordTokenizer
from jvdm.train import train
from jvdm.weights import read_manifest, safetensors, write_manifest
from jvdm.weights.folder import find
from tests.data.test_video_folder import caption, write

pytest.importorskip("grain")
CLIP = {"height": 8, "width": 8, "num_frames": 2, "fps": 12.0}


@dataclasses.dataclass(frozen=True)
class Grey:
    """Learns the mean of the frames; the teacher only has to be the same."""

    teacher: Path

    def init(self, key):
        return {"grey": jnp.zeros(())}

    def loss(self, params, batch, call):
        return (batch.video.mean() - params["grey"]) ** 2, {}


def run(place, num_steps=4, **changed):
    """Trains on what lies in a folder; the checkpoints stay where they are."""
    clips = VideoFolder(place / "videos", WordTokenizer(), **CLIP)
    experiment = Experiment(
        name="grey",
        objective=Grey(place / "teacher"),
        source=HostSource(clips, batch_size=2, threads=1),
        batch_size=2,
        num_steps=num_steps,
        checkpoint_every=2,
        start_from=place / "start.safetensors",
    )
    work = place.parent / "work"
    return train(dataclasses.replace(experiment, **changed), work, mesh=data_mesh(1))


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Two steps on what lies in a folder."""
    here = tmp_path_factory.mktemp("begun") / "here"
    for number, name in enumerate("abc"):
        caption(write(here / f"videos/{name}.mp4", 4 + number))
    shutil.copytree(find("nano"), here / "teacher")
    safetensors.save(here / "start.safetensors", {"grey": np.array(0.5)})
    assert run(here, num_steps=2)["resumed_from"] == 0
    return here.parent


@pytest.fixture
def moved(begun, tmp_path):
    """The same run in another folder, and what it reads under another name."""
    shutil.copytree(begun, tmp_path / "run")
    return (tmp_path / "run/here").rename(tmp_path / "run/there")


def test_moved_clips_and_weights_resume(moved):
    assert run(moved)["resumed_from"] == 2


def test_weights_that_are_no_longer_there_are_not_needed(moved):
    (moved / "start.safetensors").unlink()
    assert run(moved)["resumed_from"] == 2


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def other_statistics(folder):
    manifest = read_manifest(folder)
    write_manifest(folder, dataclasses.replace(manifest, latent_std=manifest.latent_mean))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda place: flip(place / "start.safetensors", -1), "start_from.sha256: .* in the check"),
        (lambda place: flip(place / "teacher/vae.safetensors", -1), "objective.teacher.sha256"),
        (
            lambda place: safetensors.save(place / "teacher/new.safetensors", {"a": np.ones(3)}),
            "objective.teacher.sha256",
        ),
        (lambda place: other_statistics(place / "teacher"), "objective.teacher.sha256"),
        (lambda place: caption(place / "videos/b.mp4", "a blue box"), "clips are not those"),
        (lambda place: flip(place / "videos/b.mp4", -20), "clips are not those"),
        (lambda place: (place / "videos/b.mp4").rename(place / "videos/d.mp4"), "clips are not"),
        (lambda place: caption(write(place / "videos/d.mp4", 4)), "clips are not those"),
    ],
    ids=["start", "weights", "more", "statistics", "caption", "clip", "name", "new"],
)
def test_changed_content_is_refused(moved, change, message):
    change(moved)
    with pytest.raises(CheckpointError, match=message):
        run(moved)


def test_steps_that_were_done_are_not_taken_back(moved):
    assert run(moved)["step"] == 4
    with pytest.raises(CheckpointError, match="at step 4 of 3; .*--num-steps 4 or more"):
        run(moved, num_steps=3)
    assert run(moved)["resumed_from"] == 4  # it only exports


@pytest.mark.parametrize("field", ["num_steps", "batch_size", "keep_checkpoints", "max_skipped"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_run_of_nothing_is_refused(tmp_path, field, value):
    flag = f"--{field.replace('_', '-')} is {value}"
    with pytest.raises(ConfigError, match=flag):
        run(tmp_path, **{field: value})
