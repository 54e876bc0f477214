"""A run that is killed, stopped or damaged and started again ends like one that was not."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jvdm.training.checkpoint import read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ("step_seconds=0.01", "sheet_seconds=0.05", "width=64")


def start(workdir, *arguments):
    command = [sys.executable, "-m", "tests.training.toy", str(workdir), *arguments]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, **streams)


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


@pytest.mark.slow
def test_sigterm_saves_exits_75_and_continues_bit_identical(tmp_path, uninterrupted):
    process = start(tmp_path, *SETTINGS)
    wait_for(process, lambda: phase(tmp_path)["step"] >= 15)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    saved = max(int(path.name) for path in (tmp_path / "checkpoints").glob("[0-9]*"))
    assert 15 < saved < 40
    assert f"stopped by SIGTERM at step {saved} of 40" in errors
    assert phase(tmp_path)["step"] == saved
    finish(tmp_path, *SETTINGS, "resume=must")
    arrays, data, _, files = fingerprint(tmp_path)
    expected_arrays, expected_data, _, expected_files = fingerprint(uninterrupted)
    assert (arrays, data, files) == (expected_arrays, expected_data, expected_files)


@pytest.mark.slow
def test_sigterm_while_compiling_exits_75_at_once(tmp_path):
    process = start(tmp_path, *SETTINGS, "trace_seconds=60")
    wait_for(process, lambda: phase(tmp_path)["phase"] == "prepare")
    time.sleep(1.5)
    began = time.time()
    process.terminate()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 75, errors
    assert time.time() - began < 10
    assert "stopped while preparing" in errors


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
