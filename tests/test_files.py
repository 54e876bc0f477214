"""Files appear whole, names overwrite nothing."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jvdm import files
from jvdm.errors import ConfigError
from jvdm.video import Video, write_image
from jvdm.weights import safetensors


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written.*--output"):
        files.probe_writable(tmp_path / "file" / "below")


def test_probe_makes_the_folder_and_leaves_it_empty(tmp_path):
    files.probe_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []


def reserved(folder, stem, suffixes):
    with files.reserving(folder, stem, suffixes) as name:
        return name


def test_names_count_up_over_all_suffixes(tmp_path):
    (tmp_path / "ball.mp4").touch()
    (tmp_path / "ball-2.json").touch()
    assert reserved(tmp_path, "ball", [".mp4", ".json"]) == "ball-3"
    assert reserved(tmp_path, "ball", [".png"]) == "ball"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("A large, red ball!", "a_large_red_ball"),
        ("", "video"),
        ("../../etc", "etc"),
        ("?", "video"),
    ],
)
def test_slugs_are_plain_names(text, name):
    assert files.slug(text) == name


def test_slugs_are_short():
    assert len(files.slug("word " * 100)) <= files.SLUG_LENGTH


def test_a_name_is_given_once_at_a_time(tmp_path):
    with files.reserving(tmp_path, "ball", [".mp4"]) as first:
        with files.reserving(tmp_path, "ball", [".mp4"]) as second:
            assert (first, second) == ("ball", "ball-2")
        assert reserved(tmp_path, "ball", [".mp4"]) == "ball-2"
    assert reserved(tmp_path, "ball", [".mp4"]) == "ball"
    with pytest.raises(KeyboardInterrupt), files.reserving(tmp_path, "ball", [".mp4"]):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


RACE = """
import sys
from pathlib import Path
from jvdm.files import reserving
for _ in range(40):
    with reserving(Path(sys.argv[1]), "ball", [".mp4"]) as name:
        (Path(sys.argv[1]) / f"{name}.mp4").open("x").close()
"""


def test_runs_that_begin_together_have_names_of_their_own(tmp_path):
    command = [sys.executable, "-c", RACE, str(tmp_path)]
    runs = [subprocess.Popen(command, cwd=Path(files.__file__).parents[1]) for _ in range(4)]
    assert [run.wait(timeout=60) for run in runs] == [0] * 4
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"ball.mp4", *(f"ball-{count}.mp4" for count in range(2, 161))}


@pytest.mark.parametrize("stem", ["x" * 300, "ü" * 101])
def test_long_names_are_refused_with_their_length(tmp_path, stem):
    with pytest.raises(ConfigError, match="has (300|202) bytes; names of 200"):
        reserved(tmp_path, stem, [".mp4"])


def test_a_name_as_long_as_allowed_is_written(tmp_path):
    name = reserved(tmp_path, "x" * files.MAX_STEM, [".latents.safetensors"])
    files.write_text(tmp_path / f"{name}.latents.safetensors", "whole")


def test_a_folder_that_cannot_be_made_is_an_error_of_names_too(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        with pytest.raises(ConfigError, match="cannot be written"):
            reserved(folder, "ball", [".mp4"])


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_files_have_the_permissions_that_the_umask_gives(tmp_path, umask):
    before = os.umask(umask)
    try:
        (tmp_path / "plain").touch()
        files.write_text(tmp_path / "a.txt", "a")
        safetensors.save(tmp_path / "a.safetensors", {"a": np.zeros(3)}, dtype="float32")
        Video(np.zeros((2, 16, 16, 3), np.uint8), 12.0).save(tmp_path / "a.mp4")
        write_image(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(modes, 0o666 & ~umask) and len(modes) == 5
