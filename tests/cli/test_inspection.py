"""`jvdm inspect` tells the truth about files, folders and runs."""

import hashlib
import json
import shutil

import ml_dtypes
import numpy as np
import pytest

from jvdm import cli, record
from jvdm.weights import safetensors
from jvdm.weights.folder import Defaults, Manifest, write_checksums, write_manifest

TREE = {"b": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "a": np.ones(4, np.int32)}


def inspect(path, capsys, *options, code=0):
    assert cli.main(["inspect", str(path), "--json", *options]) == code
    return json.loads(capsys.readouterr().out)


def by_name(result):
    return {entry["name"]: entry for entry in result["arrays"]}


@pytest.fixture
def folder(tmp_path):
    """A weights folder of two files."""
    manifest = Manifest("nano", {}, (0.0,), (1.0,), Defaults(16, 16, 5, 8.0), 5, ((16, 16),))
    write_manifest(tmp_path, manifest)
    safetensors.save(tmp_path / "vae.safetensors", TREE, dtype="float32")
    safetensors.save(tmp_path / "dit.safetensors", TREE)
    return tmp_path


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, run_python):
    """A finished training run of a few milliseconds, which tests only read."""
    folder = tmp_path_factory.mktemp("work") / "run"
    settings = ("num_steps=4", "checkpoint_every=2")
    run_python("-m", "tests.training.toy", folder, *settings, check=True)
    return folder


def test_a_file_is_described_array_by_array(tmp_path, capsys):
    path = tmp_path / "x.safetensors"
    safetensors.save(path, TREE, dtype="float32")
    result = inspect(path, capsys)
    assert result["kind"] == "safetensors file"
    assert [entry["name"] for entry in result["arrays"]] == ["a", "b/kernel"]
    kernel = by_name(result)["b/kernel"]
    assert (
        kernel["sha256"] == hashlib.sha256(TREE["b"]["kernel"].astype("<f4").tobytes()).hexdigest()
    )
    assert (kernel["shape"], kernel["dtype"]) == ([2, 3], "float32")
    assert result["total"] == {"arrays": 2, "parameters": 10, "bytes": 40, "non_finite": 0}


def test_non_finite_values_are_counted_and_the_answer_is_no(tmp_path, capsys):
    import safetensors.numpy

    path = tmp_path / "bad.safetensors"
    bad = np.array([1.0, np.nan, np.inf], ml_dtypes.bfloat16)
    safetensors.numpy.save_file({"bad": bad, "good": np.zeros(2)}, path)
    result = inspect(path, capsys, code=1)
    assert by_name(result)["bad"]["non_finite"] == 2 and result["ok"] is False
    assert result["total"]["non_finite"] == 2
    assert cli.main(["inspect", str(path)]) == 1
    assert "2 NON-FINITE" in capsys.readouterr().out


def test_a_weights_folder_lists_every_file(folder, capsys):
    result = inspect(folder, capsys)
    assert result["kind"] == "weights folder"
    assert result["about"]["family"] == "nano"
    names = [entry["name"] for entry in result["arrays"]]
    assert names == ["dit/a", "dit/b/kernel", "vae/a", "vae/b/kernel"]
    assert by_name(result)["dit/b/kernel"]["dtype"] == "float16"


def test_embedded_weights_are_known_by_name(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = inspect("nano", capsys)
    assert result["kind"] == "weights folder" and result["about"]["family"] == "nano"
    assert result["total"]["arrays"] > 20 and result["ok"]
    (tmp_path / "nano").mkdir()  # what is here is meant
    assert cli.main(["inspect", "nano"]) == 2


def test_a_record_shows_its_settings(capsys, tmp_path):
    path = tmp_path / "ball.json"
    settings = {"prompt": "a red ball", "seed": 7}
    record.write(path, record.Record(settings, {}, {}, {}, {}, {}, status="latents"))
    result = inspect(path, capsys)
    assert result["kind"] == "record" and result["about"]["settings"] == settings
    assert cli.main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("latents", "a red ball", "7"))
    path.write_text('{"settings": 3}')
    assert cli.main(["inspect", str(path)]) == 2
    assert "is not a record" in capsys.readouterr().err


def test_verify_compares_with_the_checksums_of_the_export(folder, capsys):
    assert cli.main(["inspect", str(folder), "--verify"]) == 2
    assert "SHA256SUMS does not exist" in capsys.readouterr().err
    write_checksums(folder)
    assert inspect(folder, capsys, "--verify")["differences"] == []
    safetensors.save(folder / "dit.safetensors", TREE, dtype="bfloat16")
    (folder / "vae.safetensors").unlink()
    wrong = inspect(folder, capsys, "--verify", code=1)["differences"]
    assert wrong == ["vae.safetensors is missing", "dit.safetensors has changed"]
    assert cli.main(["inspect", str(folder), "--verify"]) == 1
    assert "dit.safetensors has changed" in capsys.readouterr().out
    assert inspect(folder, capsys)["ok"]  # the arrays themselves are sound


def test_a_work_directory_shows_its_newest_checkpoint(workdir, capsys):
    result = inspect(workdir, capsys)
    assert result["kind"] == "work directory"
    assert result["step"] == max(result["steps"]) == 4
    assert result["about"]["versions"]["jax"]
    assert by_name(result)["step"]["shape"] == []
    assert any("layers_0" in name for name in by_name(result))


@pytest.mark.parametrize("inner", ["checkpoints", "checkpoints/4"])
def test_checkpoints_are_known_wherever_one_points(workdir, capsys, inner):
    whole = inspect(workdir, capsys)
    part = inspect(workdir / inner, capsys)
    assert part["arrays"] == whole["arrays"]
    assert part["step"] == 4


def test_an_older_checkpoint_can_be_chosen(workdir, capsys):
    newest = inspect(workdir, capsys)
    older = inspect(workdir, capsys, "--step", "2")
    assert (older["step"], newest["step"]) == (2, 4)
    assert by_name(older)["params/head/kernel"] != by_name(newest)["params/head/kernel"]
    assert cli.main(["inspect", str(workdir), "--step", "3999"]) == 2
    assert "no checkpoint of step 3999" in capsys.readouterr().err


def test_paths_that_hold_nothing_known_are_refused(folder, capsys, tmp_path):
    empty_run = tmp_path / "empty"
    (empty_run / "checkpoints").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("not weights, but long enough to have a header")
    (tmp_path / "plain").mkdir()
    situations = {
        tmp_path / "vae.safetensor": "did you mean",
        tmp_path / "zzz" / "nothing": "holds nothing of a similar name",
        tmp_path / "notes.txt": "not a readable safetensors file",
        tmp_path / "plain": "is a folder that jvdm does not know",
        empty_run: "holds no finished checkpoint",
    }
    for path, message in situations.items():
        assert cli.main(["inspect", str(path)]) == 2
        printed = capsys.readouterr()
        assert message in printed.err, printed.err
        assert not printed.out


def test_a_broken_checkpoint_is_named(workdir, capsys, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(workdir, broken)
    for path in (broken / "checkpoints" / "4" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    assert cli.main(["inspect", str(broken)]) == 2
    assert "checkpoint 4" in capsys.readouterr().err
    assert inspect(broken, capsys, "--step", "2")["step"] == 2


def test_a_truncated_file_is_named(tmp_path, capsys):
    path = tmp_path / "x.safetensors"
    safetensors.save(path, TREE)
    path.write_bytes(path.read_bytes()[:-3])
    assert cli.main(["inspect", str(path)]) == 2
    assert "truncated" in capsys.readouterr().err
