"""Paths as people type them: a home folder, and names that no file can have."""

import shutil

import pytest

from jvdm import cli
from jvdm.flags import parse
from jvdm.weights.folder import embedded

LONG = "x" * 300


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with a copy of the nano weights and a config."""
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(embedded("nano"), tmp_path / "nano")
    (tmp_path / "mine.py").write_text(
        "import dataclasses\nfrom jvdm.configs import nano\n"
        "def config():\n    return dataclasses.replace(nano.config(), name='mine')\n"
    )
    return tmp_path


def test_a_home_folder_is_meant_by_a_tilde(home, capsys):
    assert cli.main(["inspect", "~/nano"]) == 0
    assert str(home / "nano") in capsys.readouterr().out


@pytest.mark.parametrize(
    "given",
    [
        ("--weights=~/nano", "--like=~/x.json", "--output=~/out"),
        ("--weights", "~/nano", "--like", "~/x.json", "--output", "~/out"),
    ],
)
def test_every_option_of_generate_knows_the_home_folder(home, given):
    import jvdm.generate

    verb = cli.VERBS["generate"]
    options = parse("generate", verb, jvdm.generate, ["about ~5 balls", *given]).options
    paths = (options.weights, options.like, options.output)
    assert tuple(map(str, paths)) == tuple(str(home / name) for name in ("nano", "x.json", "out"))
    assert options.prompt == "about ~5 balls"
    other = parse("generate", verb, jvdm.generate, ["~5 balls", "--weights=a~b"]).options
    assert (other.prompt, other.weights) == ("~5 balls", "a~b")


def test_training_knows_the_home_folder(home, monkeypatch):
    calls = []
    monkeypatch.setattr("jvdm.train.run", lambda *given: calls.append(given) or {})
    monkeypatch.setattr(cli, "keep_compiled_programs", lambda: None)
    flags = ["--workdir=~/run", "--start-from=~/nano", "--source.vae-weights", "~/nano"]
    assert cli.main(["train", "~/mine.py", *flags]) == 0
    ((options, experiment),) = calls
    assert experiment.name == "mine" and options.workdir == home / "run"
    assert experiment.start_from == experiment.source.vae_weights == home / "nano"


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "a ball", "--weights", LONG],
        ["generate", "a ball", "--weights", f"{LONG}/{LONG}"],
        ["generate", "a ball", "--weights", f"/{LONG}/a"],
        ["generate", "a ball", "--weights", "a\0b/c/d"],
        ["generate", "a ball", "--like", LONG],
        ["generate", "a ball", "--weights", "nano", "--image", LONG],
        ["generate", "a ball", "--weights", "nano", "--video", LONG],
        ["generate", "a ball", "--weights", "nano", "--system", LONG],
        ["decode", LONG],
        ["train", LONG],
        ["train", "nano", "--workdir", LONG],
        ["train", "nano", "--start-from", LONG, "--source.pool", "4"],
        ["train", "nano", "--source.vae-weights", LONG],
        ["train", "nano", "--package.parts", LONG],
        ["train", "nano", "--start-from", f"/{LONG}", "--source.pool", "4"],
        ["export", LONG],
        ["inspect", LONG],
        ["inspect", f"a/{LONG}/b"],
        ["inspect", f"/{LONG}/b"],
        ["inspect", "a\0b"],
        ["inspect", LONG, "--verify"],
        ["convert", LONG, "x"],
        ["convert", "nano", LONG],
        ["evaluate", "--weights", LONG],
    ],
)
def test_a_name_that_no_file_can_have_is_one_line(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "keep_compiled_programs", lambda: None)
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line[:6] for line in said if "part/s]" not in line and line] == ["jvdm: "]
