"""Several real processes train as one does, and whatever becomes of one, all of them know."""

import errno
import json
import signal
import time

import jax
import numpy as np
import orbax.checkpoint
import pytest

from jvdm.errors import CheckpointError
from jvdm.parallel import processes
from jvdm.train import train
from jvdm.training.checkpoint import Checkpoints, read_checkpoint
from jvdm.weights import safetensors
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
def origin(tmp_path_factory):
    """A file of the weights that all these runs begin with."""
    path = tmp_path_factory.mktemp("origin") / "weights.safetensors"
    safetensors.save(path, several.Brightness().init(jax.random.key(5)), dtype="float32")
    return path


@pytest.fixture(scope="module")
def alone(tmp_path_factory, origin):
    """The run in this process, on as many devices."""
    workdir = tmp_path_factory.mktemp("alone")
    train(several.experiment(start_from=origin), workdir, mesh=several.MESH)
    return workdir


@pytest.fixture(scope="module")
def together(tmp_path_factory, origin):
    """The run of four processes that nobody disturbs.

    Threads of a process prepare in an order that is not that of another process.
    """
    workdir = tmp_path_factory.mktemp("together")
    running = several.start(workdir, 4, f"start_from={origin}", "frozen=1.5")
    for code, _, errors in several.finish(running, 60):
        assert code == 0, errors
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
def test_four_processes_train_as_one_whatever_order_their_threads_prepare_in(together, alone):
    assert_near(together, alone)


@pytest.mark.slow
@pytest.mark.parametrize("pause", ["clip=0.03", "sheet=1"])
def test_sigterm_on_one_of_two_saves_in_both_and_one_process_goes_on(
    tmp_path, origin, alone, pause
):
    """In the middle of a step, or while process 0 makes a sheet and the others wait for it."""
    running = several.start(tmp_path, 2, f"start_from={origin}", pause)
    wanted = 4 if "clip" in pause else 6
    several.wait_for(running, lambda: several.step_of(tmp_path) >= wanted)
    running[-1].send_signal(signal.SIGTERM)
    ends = several.finish(running)
    said = ends[0][2]
    assert [code for code, _, _ in ends] == [75, 75], said
    assert "2 processes on 1 hosts met" in said and "2 of 4 devices here" in said
    saved = max(int(path.name) for path in (tmp_path / "checkpoints").glob("[0-9]*"))
    assert wanted <= saved < 12
    for _, _, errors in ends:
        assert f"stopped by SIGTERM at step {saved} of 12; the state is saved" in errors, errors
    assert ["ready at step" in errors for _, _, errors in ends] == [True, False]
    result = train(several.experiment(start_from=origin), tmp_path, "must", mesh=several.MESH)
    assert result["resumed_from"] == saved
    assert_near(tmp_path, alone)


@pytest.mark.slow
def test_where_one_of_four_is_killed_the_others_say_so_and_four_go_on_bit_for_bit(
    tmp_path, origin, together
):
    running = several.start(tmp_path, 4, f"start_from={origin}", "clip=0.03")
    several.wait_for(running, lambda: (tmp_path / "checkpoints" / "4").is_dir())
    running[-1].kill()
    *others, (killed, _, _) = several.finish(running, 30)
    assert killed == -signal.SIGKILL
    for code, _, errors in others:
        assert code == 1 and "Traceback" not in errors, errors
        assert "process 3 of 4 on" in errors
        assert "was lost: it ended without a word" in errors
    again = several.finish(several.start(tmp_path, 4, f"start_from={origin}", "resume"), 60)
    assert [code for code, _, _ in again] == [0] * 4, again
    assert json.loads(again[0][1].splitlines()[-1])["resumed_from"] in (4, 8)
    arrays, data, _, names = fingerprint(tmp_path)
    expected_arrays, expected_data, _, expected_names = fingerprint(together)
    assert (data, names) == (expected_data, expected_names)
    for key, array in arrays.items():
        np.testing.assert_array_equal(array, expected_arrays[key], err_msg=key)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer"), ValueError),
        (OSError(errno.ENOSPC, "No space left on device"), CheckpointError),
        (ValueError("FAILED: Error writing [os_error_code='28' source='f']"), CheckpointError),
    ],
    ids=["lost", "full", "full too"],
)
def test_a_process_that_is_lost_while_others_write_is_no_fault_of_the_disk(
    tmp_path, monkeypatch, error, expected
):
    """Nobody is told to mend a folder (exit code 2): the run begins again (`tests.parallel.kills`
    found it with four processes)."""

    def failed(manager):
        raise error

    with Checkpoints(tmp_path / "checkpoints") as checkpoints, monkeypatch.context() as patch:
        patch.setattr(orbax.checkpoint.CheckpointManager, "wait_until_finished", failed)
        patch.setattr(processes, "process_count", lambda: 2)
        with pytest.raises(expected):
            checkpoints.wait()
        patch.setattr(processes, "process_count", lambda: 1)
        with pytest.raises(CheckpointError, match="cannot be written"):
            checkpoints.wait()


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


@pytest.mark.slow
def test_sigterm_ends_an_evaluation_in_both_also_where_one_only_waits(tmp_path):
    """JAX's own service takes SIGTERM from whoever listened, and the second one has no batch."""
    asked = ["--weights", "nano", "--sets", "A", "--num-prompts", "2", "--batch-size", "2"]
    where = f"127.0.0.1:{several.free_port()}"
    command = ["-m", "jvdm", "evaluate", *asked, "--output", str(tmp_path), "--num-processes", "2"]
    command += ["--coordinator-address", where, "--process-id"]
    running = [several.begin(*command, str(process)) for process in range(2)]
    assert running[0].stderr and "processes on 1 hosts met" in running[0].stderr.readline()
    time.sleep(3)  # the second one waits by then, or soon
    running[1].send_signal(signal.SIGTERM)
    for code, _, errors in several.finish(running, 60):
        assert code == 75 and "Traceback" not in errors, errors
        assert "stopped by SIGTERM before it was done" in errors
    assert not (tmp_path / "evaluation.json").exists()
