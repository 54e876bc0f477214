"""A run that is killed, stopped or damaged and started again ends like one that was not."""

import errno
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from jvdm.errors import CheckpointError
from jvdm.train import train
from jvdm.training.checkpoint import read_checkpoint
from tests.training import toy

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ("step_seconds=0.01", "sheet_seconds=0.05", "width=64")


def hears_everything():
    """A background job, in which tests may run, ignores Ctrl-C, and so would what it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(workdir, *arguments, preexec=hears_everything):
    command = [sys.executable, "-m", "tests.training.toy", str(workdir), *arguments]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, preexec_fn=preexec, **streams)


def finish(workdir, *arguments):
    process = start(workdir, *arguments)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return errors


def fingerprint(workdir):
    """Everything a finished run leaves, except times."""
    arrays, meta = read_checkpoint(workdir / "checkpoints")
    hashes = {
        name: hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        for name, value in arrays.items()
    }
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    timeless = [
        {name: value for name, value in line.items() if "second" not in name} for line in lines
    ]
    files = sorted([*workdir.glob("samples/*"), *workdir.glob("weights/*")])
    contents = {str(path.relative_to(workdir)): path.read_bytes() for path in files}
    return hashes, meta["data"], timeless, contents


def wait_for(process, condition):
    """Waits for `condition` or the end of the process."""
    deadline = time.time() + 60
    while process.poll() is None and time.time() < deadline:
        if condition():
            return
        time.sleep(0.001)


def phase(workdir):
    path = workdir / "heartbeat.json"
    return json.loads(path.read_text()) if path.exists() else {"phase": "", "step": -1}


def writes_checkpoint(workdir, step):
    return any((workdir / "checkpoints").glob(f"{step}.orbax-checkpoint-tmp*"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    finish(workdir, *SETTINGS)
    return workdir


@pytest.mark.slow
def test_killed_at_any_point_ends_bit_identical(tmp_path, uninterrupted):
    rng = np.random.default_rng(0)
    points = [
        lambda: phase(tmp_path)["phase"] == "prepare",
        lambda: phase(tmp_path)["step"] >= 5,
        lambda: writes_checkpoint(tmp_path, 10),
        lambda: (tmp_path / "checkpoints" / "10").exists(),
        lambda: (tmp_path / "samples" / "step_20.png").exists(),
        lambda: writes_checkpoint(tmp_path, 30),
        lambda: phase(tmp_path)["step"] >= 35,
        lambda: writes_checkpoint(tmp_path, 40) or phase(tmp_path)["phase"] == "export",
    ]
    killed = 0
    for point in points:
        process = start(tmp_path, *SETTINGS)
        wait_for(process, point)
        time.sleep(rng.uniform(0, 0.03))
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    assert killed >= 6
    finish(tmp_path, *SETTINGS)
    assert fingerprint(tmp_path) == fingerprint(uninterrupted)


SIGNALS = [(signal.SIGTERM, 75, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code", "name"), SIGNALS)
def test_a_signal_saves_and_the_run_continues_bit_identical(
    tmp_path, uninterrupted, number, code, name
):
    process = start(tmp_path, *SETTINGS)
    wait_for(process, lambda: phase(tmp_path)["step"] >= 15)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    saved = max(int(path.name) for path in (tmp_path / "checkpoints").glob("[0-9]*"))
    assert 15 < saved < 40
    assert f"stopped by {name} at step {saved} of 40" in errors and "Traceback" not in errors
    assert phase(tmp_path)["step"] == saved
    finish(tmp_path, *SETTINGS, "resume=must")
    arrays, data, _, files = fingerprint(tmp_path)
    expected_arrays, expected_data, _, expected_files = fingerprint(uninterrupted)
    assert (arrays, data, files) == (expected_arrays, expected_data, expected_files)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code", "name"), SIGNALS)
def test_a_signal_while_compiling_ends_the_run_at_once(tmp_path, number, code, name):
    process = start(tmp_path, *SETTINGS, "trace_seconds=60")
    wait_for(process, lambda: phase(tmp_path)["phase"] == "prepare")
    time.sleep(1.5)
    began = time.time()
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code, errors
    assert time.time() - began < 2
    assert f"stopped by {name} while preparing" in errors and "Traceback" not in errors


@pytest.mark.slow
def test_a_long_stage_says_at_once_that_it_will_stop_and_a_second_ctrl_c_stops_it(tmp_path):
    """A sheet that takes a minute, as one on a CPU may; the main thread is in the middle of it."""
    process = start(tmp_path, "sheet_seconds=60")
    assert process.stderr is not None
    wait_for(process, lambda: phase(tmp_path)["step"] >= 20)
    time.sleep(0.5)
    began = time.time()
    process.send_signal(signal.SIGINT)
    lines = iter(process.stderr.readline, "")
    assert next(line for line in lines if "saved after this step; Ctrl-C again" in line)
    assert time.time() - began < 2 and process.poll() is None
    time.sleep(0.3)  # signals of one millisecond are one: Python hands over a signal once at a time
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and time.time() - began < 4
    assert "stopped by Ctrl-C" in errors and "Traceback" not in errors


@pytest.mark.slow
def test_a_signal_that_the_process_ignores_stays_ignored(tmp_path):
    def deaf():
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    process = start(tmp_path, *SETTINGS, preexec=deaf)
    wait_for(process, lambda: phase(tmp_path)["step"] >= 15)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 12 MB."""
    command = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("may not mount a small file system")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["step 15", "while it writes", "export"])
def test_a_full_disk_is_one_line_and_the_run_continues(small_disk, point):
    workdir = small_disk / "run"
    settings = ("step_seconds=0.02", "sheet_seconds=0.2", "width=4000", "summary_seconds=1.0")
    reached = {
        "step 15": lambda: phase(workdir)["step"] >= 15,
        "while it writes": lambda: writes_checkpoint(workdir, 20),
        "export": lambda: phase(workdir)["phase"] == "export",
    }
    process = start(workdir, *settings)
    wait_for(process, reached[point])
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"), filler.open("wb", buffering=0) as file:
        while file.write(bytes(100_000)):
            pass
    _, errors = process.communicate(timeout=60)
    others = ("ready at step", "step ")
    (said,) = [line for line in errors.splitlines() if not line.startswith(others)]
    assert process.returncode == 2 and "cannot be written" in said
    filler.unlink()
    again = finish(workdir, *settings)
    assert point == "export" or f"ready at step {10 if point[0] in 'sw' else 40}" in again


@pytest.mark.slow
@pytest.mark.parametrize("sheets", ["sample_every=0", "sample_every=5"])
def test_a_file_that_the_system_refuses_is_one_line(tmp_path, sheets):
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    process = start(tmp_path, "width=40000", sheets, preexec=limited)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and "Traceback" not in errors, errors
    said = f"{tmp_path} cannot be written; {os.strerror(errno.EFBIG)}; .*continues at step 0"
    assert re.search(said, errors), errors


@pytest.mark.slow
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, uninterrupted):
    finish(tmp_path, *SETTINGS)
    for path in (tmp_path / "checkpoints" / "40").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            os.truncate(path, path.stat().st_size // 2)
    process = start(tmp_path, *SETTINGS, "resume=must")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "checkpoint 40 cannot be read" in errors and "--resume auto" in errors
    warning = finish(tmp_path, *SETTINGS)
    assert "checkpoint 40 cannot be read" in warning and "ready at step 30" in warning
    assert (tmp_path / "broken_checkpoints" / "40").is_dir()
    assert fingerprint(tmp_path) == fingerprint(uninterrupted)


def write(path, content):
    path.write_bytes(content)


DAMAGE = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "deleted": lambda path: path.unlink(),
    "{}": lambda path: write(path, b"{}"),
    "[1, 2]": lambda path: write(path, b"[1, 2]"),
    "zeros": lambda path: write(path, bytes(path.stat().st_size)),
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("kept")
    train(toy.experiment(sample_every=0), workdir)
    return workdir


def names_of(kept):
    newest = kept / "checkpoints" / "40"
    return sorted(path.relative_to(newest) for path in newest.rglob("*") if path.is_file())


@pytest.mark.slow
def test_whatever_happens_to_a_file_of_the_newest_checkpoint_the_run_goes_on(kept, tmp_path):
    """Each file in each way: read with the same bits, or set aside and the one before used."""
    whole, _ = read_checkpoint(kept / "checkpoints")
    outcomes = set()
    for name in names_of(kept):
        for how, damage in DAMAGE.items():
            workdir = tmp_path / f"{len(list(tmp_path.iterdir()))}"
            shutil.copytree(kept, workdir)
            damage(workdir / "checkpoints" / "40" / name)
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always", UserWarning)
                result = train(toy.experiment(sample_every=0), workdir)
            outcomes.add((result["resumed_from"], (workdir / "broken_checkpoints/40").is_dir()))
            told = any("checkpoint 40 cannot be read" in str(one.message) for one in said)
            assert told == (result["resumed_from"] == 30), (name, how)
            again, _ = read_checkpoint(workdir / "checkpoints")
            assert all(again[key].tobytes() == whole[key].tobytes() for key in whole), (name, how)
    assert outcomes == {(40, False), (30, True)}


@pytest.mark.parametrize("content", [b"{}", b"[1, 2]", b'{"arrays": 3}', b"[" * 100_000])
def test_resume_must_names_the_checkpoint_that_cannot_be_read(kept, tmp_path, content):
    shutil.copytree(kept, tmp_path / "run")
    (tmp_path / "run/checkpoints/40/meta/metadata").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{tmp_path}/run/checkpoints/40.*--resume must"):
        train(toy.experiment(sample_every=0), tmp_path / "run", resume="must")
    with pytest.raises(CheckpointError, match="checkpoint 40 .* is broken"):
        read_checkpoint(tmp_path / "run" / "checkpoints")


def test_a_checkpoint_that_breaks_twice_is_set_aside_twice(kept, tmp_path):
    shutil.copytree(kept, tmp_path / "run")
    for _ in range(2):
        (tmp_path / "run/checkpoints/40/meta/metadata").write_bytes(b"{}")
        with pytest.warns(UserWarning, match="checkpoint 40 cannot be read"):
            train(toy.experiment(sample_every=0), tmp_path / "run")
    aside = (tmp_path / "run/broken_checkpoints").iterdir()
    assert sorted(path.name for path in aside) == ["40", "40-2"]


def test_a_checkpoint_is_not_begun_where_it_does_not_fit(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=500))
    with pytest.raises(CheckpointError, match=r"it has 0.0 MB, the disk has 0.0 left.*step 0"):
        train(toy.experiment(), tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())
    monkeypatch.undo()
    assert train(toy.experiment(), tmp_path)["step"] == 40
