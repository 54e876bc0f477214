"""Several real processes train as one does, and whatever becomes of one, all of them know."""

import json
import signal
import time

import numpy as np
import pytest

from jvdm.train import train
from jvdm.training.checkpoint import read_checkpoint
from tests.parallel import several

pytest.importorskip("grain")


def fingerprint(workdir):
    """What a run has learned and left for people, except times."""
    arrays, meta = read_checkpoint(workdir / "checkpoints")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines}
    files = sorted([*workdir.glob("samples/*"), *workdir.glob("weights/*.safetensors")])
    names = {str(path.relative_to(workdir)) for path in files}
    return arrays, meta["data"], losses, names


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run in this process, on as many devices."""
    workdir = tmp_path_factory.mktemp("alone")
    train(several.experiment(), workdir, mesh=several.MESH)
    return workdir


def assert_near(one, other):
    """Sums over devices may be taken in another order, so that last bits differ."""
    arrays, data, losses, names = fingerprint(one)
    expected_arrays, expected_data, expected_losses, expected_names = fingerprint(other)
    assert data == expected_data and names == expected_names
    assert arrays.keys() == expected_arrays.keys()
    for key, array in arrays.items():
        largest = max(np.abs(expected_arrays[key]).max(initial=0), 1e-3)
        np.testing.assert_allclose(array, expected_arrays[key], 0, 1e-5 * largest, err_msg=key)
    # A line is the mean of two steps, of one where the run went on between them.
    assert losses[12] == pytest.approx(expected_losses[12], rel=1e-5)


@pytest.mark.slow
def test_sigterm_on_one_of_two_saves_in_both_and_one_process_goes_on(tmp_path, alone):
    running = several.start(tmp_path, 2, "clip=0.03")
    several.wait_for(running, lambda: several.step_of(tmp_path) >= 4)
    running[1].send_signal(signal.SIGTERM)
    (code, said, errors), (code_1, said_1, errors_1) = several.finish(running)
    assert (code, code_1) == (75, 75), errors + errors_1
    assert "2 processes on 1 hosts met" in errors and "2 of 4 devices here" in errors
    saved = max(int(path.name) for path in (tmp_path / "checkpoints").glob("[0-9]*"))
    assert 4 <= saved < 12
    for one in (errors, errors_1):
        assert f"stopped by SIGTERM at step {saved} of 12; the state is saved" in one, one
    assert "ready at step" in errors and "ready at step" not in errors_1
    result = train(several.experiment(), tmp_path, "must", mesh=several.MESH)
    assert result["resumed_from"] == saved
    assert_near(tmp_path, alone)


@pytest.mark.slow
def test_where_one_of_two_is_killed_the_other_says_so_and_one_process_goes_on(tmp_path, alone):
    running = several.start(tmp_path, 2, "clip=0.03")
    several.wait_for(running, lambda: (tmp_path / "checkpoints" / "4").is_dir())
    running[1].kill()
    (code, _, errors), (code_1, _, _) = several.finish(running, 30)
    assert (code, code_1) == (1, -signal.SIGKILL)
    assert "process 1 of 2 on" in errors and "was lost: it ended without a word" in errors
    assert "Traceback" not in errors
    result = train(several.experiment(), tmp_path, "must", mesh=several.MESH)
    assert result["resumed_from"] in (4, 8)
    assert_near(tmp_path, alone)


@pytest.mark.slow
def test_sigterm_while_both_compile_ends_both_at_once(tmp_path):
    running = several.start(tmp_path, 2, "trace=60")
    several.wait_for(running, (tmp_path / "compiling").exists)
    began = time.monotonic()
    running[1].send_signal(signal.SIGTERM)
    for code, _, errors in several.finish(running, 30):
        assert code == 75, errors
        assert "stopped by SIGTERM while preparing" in errors and "Traceback" not in errors
    assert time.monotonic() - began < 10
