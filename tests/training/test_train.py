"""The training loop in one process: what it writes, refuses and survives."""

import dataclasses
import json
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.attention import FrameCausal
from jvdm.configs import my_videos, nano, tiny_t2v
from jvdm.errors import CheckpointError, ConfigError, NumericsError, WeightsError
from jvdm.parallel.mesh import data_mesh, mesh_of
from jvdm.train import text, train
from jvdm.training import checkpoint, setup
from jvdm.training.checkpoint import read_checkpoint
from jvdm.training.export import export
from jvdm.training.flow_matching import FlowMatching
from jvdm.training.optimizer import Optimizer
from jvdm.weights import read_manifest, safetensors
from tests.training import pair, toy


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, train(toy.experiment(), workdir)


def test_a_run_learns_and_leaves_everything(finished):
    workdir, result = finished
    assert result["step"] == 40 and result["resumed_from"] == 0
    assert [line["step"] for line in lines(workdir)] == list(range(5, 41, 5))
    assert lines(workdir)[-1]["loss"] < 0.8 * lines(workdir)[0]["loss"]
    assert json.loads((workdir / "experiment.json").read_text())["name"] == "toy"
    assert json.loads((workdir / "heartbeat.json").read_text())["phase"] == "done"
    assert sorted(path.name for path in (workdir / "samples").iterdir()) == [
        "step_20.png",
        "step_40.png",
    ]
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["30", "40"]
    exported = safetensors.load(workdir / "weights" / "line.safetensors")["head"]["kernel"]
    arrays, meta = read_checkpoint(workdir / "checkpoints")
    np.testing.assert_array_equal(exported, arrays["ema/head/kernel"].astype(np.float16))
    notes = read_manifest(workdir / "weights").notes
    assert notes["largest"] == result["largest"] == np.abs(arrays["ema/head/kernel"]).max()
    assert meta["versions"]["jax"] == jax.__version__
    assert "clips_per_second" in text(result)


def test_a_finished_run_is_only_exported_again(finished):
    workdir, _ = finished
    weights = workdir / "weights" / "line.safetensors"
    weights.unlink()
    result = train(toy.experiment(), workdir)
    assert result["resumed_from"] == 40 and weights.exists()


def test_a_run_starts_from_the_parameters_of_a_file(tmp_path):
    experiment = toy.experiment()
    params = jax.tree.map(
        lambda x: np.asarray(x) + 0.5, experiment.objective.init(jax.random.key(9))
    )
    safetensors.save(tmp_path / "start.safetensors", params, dtype="float32")
    still = dataclasses.replace(
        experiment,
        start_from=tmp_path / "start.safetensors",
        optimizer=Optimizer(learning_rate=0.0),
        num_steps=2,
        sample_every=0,
    )
    train(still, tmp_path / "run")
    arrays, _ = read_checkpoint(tmp_path / "run" / "checkpoints")
    for part in ("params", "ema"):
        np.testing.assert_array_equal(arrays[f"{part}/head/kernel"], params["head"]["kernel"])


def test_parameters_of_another_model_are_refused_before_anything_is_drawn_or_compiled(
    tmp_path, monkeypatch
):
    done = []
    monkeypatch.setattr(setup, "make_state", lambda *_: done.append("drawn"))
    monkeypatch.setattr(setup, "compile_step", lambda *_: done.append("compiled"))
    wide = dataclasses.replace(toy.Line(), width=8).init(jax.random.key(0))
    safetensors.save(tmp_path / "wide.safetensors", wide)
    other = dataclasses.replace(toy.experiment(), start_from=tmp_path / "wide.safetensors")
    with pytest.raises(WeightsError, match=r"head/kernel is \(8, 1\), needs \(16, 1\)"):
        train(other, tmp_path / "run")
    assert not done


@pytest.mark.parametrize(("mesh", "whole"), [("data=4", True), ("fsdp=4", False)])
def test_parameters_are_drawn_by_kernels_where_no_device_has_a_part(monkeypatch, mesh, whole):
    said, real = [], setup.kernel_draws
    monkeypatch.setattr(setup, "kernel_draws", lambda whole: (said.append(whole), real(whole))[1])
    devices = mesh_of(mesh, jax.devices()[:4])
    setup.make_state(toy.Line(width=256), Optimizer().build(2), 0, devices)
    assert said == [whole]


def test_a_ring_is_filled_and_parameters_are_drawn_while_the_step_is_compiled(
    tmp_path, monkeypatch
):
    """Each waits until all three are at it, and says so if it is alone."""
    met, there, made = threading.Barrier(3), [], []

    def waits(name, work):
        def run(*given):
            met.wait(timeout=30)
            there.append(name)
            return work(*given)

        return run

    @dataclasses.dataclass(frozen=True)
    class Ring(toy.HostLines):
        def shapes(self, mesh):
            made.append(super().start(0, None, mesh))
            return made[0]

        def start(self, position, saved, mesh):
            return waits("fill", made.pop)()

    for name in ("make_state", "compile_step"):
        monkeypatch.setattr(setup, name, waits(name, getattr(setup, name)))
    experiment = dataclasses.replace(toy.experiment(), source=Ring(), num_steps=2)
    assert train(experiment, tmp_path)["step"] == 2
    assert sorted(there) == ["compile_step", "fill", "make_state"]


def test_resume_must_needs_a_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        train(toy.experiment(), tmp_path, resume="must")


def test_resume_never_overwrites_nothing(finished):
    with pytest.raises(CheckpointError, match=r"steps \[30, 40\]"):
        train(toy.experiment(), finished[0], resume="never")


def test_another_experiment_is_named(finished):
    with pytest.raises(CheckpointError) as caught:
        train(toy.experiment(seed=7, width=32), finished[0])
    assert "objective.width: 16 in the checkpoint, 32 now" in str(caught.value)
    assert "seed: 0 in the checkpoint, 7 now" in str(caught.value)


def test_another_tree_is_named(finished, monkeypatch):
    init = toy.Line.init
    monkeypatch.setattr(toy.Line, "init", lambda self, key: {**init(self, key), "extra": key_one()})
    with pytest.raises(CheckpointError, match="params/extra: absent in the checkpoint"):
        train(toy.experiment(), finished[0])


def key_one():
    return jax.numpy.ones((2,))


def test_an_unwritable_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        train(toy.experiment(), tmp_path / "file")


@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_a_slow_folder_is_named_with_what_training_waited(tmp_path, monkeypatch, seconds):
    """Every save waits for the one before; a warning says so where that takes long."""
    wait = checkpoint.Checkpoints.wait
    monkeypatch.setattr(checkpoint, "SLOW_SECONDS", 0.25)
    monkeypatch.setattr(
        checkpoint.Checkpoints, "wait", lambda self: (time.sleep(seconds), wait(self))
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(toy.experiment(), tmp_path)
    said = [str(one.message) for one in caught if "is slow" in str(one.message)]
    assert bool(said) == (seconds > 0.25)
    assert all(str(tmp_path) in one and "--checkpoint-every" in one for one in said)


def test_non_finite_steps_are_skipped_and_counted(tmp_path):
    train(toy.experiment(bad_from=12, bad_until=15), tmp_path)
    by_step = {line["step"]: line for line in lines(tmp_path)}
    assert by_step[10]["skipped"] == 0 and by_step[40]["skipped"] == 3
    assert by_step[15]["skipped_in_row"] == 3 and by_step[40]["skipped_in_row"] == 0
    arrays, _ = read_checkpoint(tmp_path / "checkpoints")
    assert all(np.isfinite(value).all() for value in arrays.values())
    assert by_step[15]["loss"] is not None  # the mean of the finite steps


def test_too_many_in_a_row_stop_the_run_and_keep_the_last_checkpoint(tmp_path):
    with pytest.raises(NumericsError, match="9 steps in a row"):
        train(toy.experiment(bad_from=11, max_skipped=6), tmp_path)
    arrays, _ = read_checkpoint(tmp_path / "checkpoints")
    assert arrays["step"] == 10 and np.isfinite(arrays["params/head/kernel"]).all()
    assert lines(tmp_path)[-1]["loss"] is None


def test_metrics_after_the_restored_step_and_torn_lines_are_dropped(tmp_path):
    train(toy.experiment(num_steps=20), tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 25, "loss": 1.0}\n{"step": 30, "lo')
    train(toy.experiment(num_steps=40), tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == list(range(5, 41, 5))


def test_a_checkpoint_of_one_device_continues_on_four(tmp_path):
    experiment = toy.experiment(num_steps=20)
    train(experiment, tmp_path / "mixed", mesh=data_mesh(1))
    longer = dataclasses.replace(experiment, num_steps=40)
    train(longer, tmp_path / "mixed", mesh=data_mesh(4))
    train(experiment, tmp_path / "one", mesh=data_mesh(1))
    train(longer, tmp_path / "one", mesh=data_mesh(1))
    mixed, _ = read_checkpoint(tmp_path / "mixed" / "checkpoints")
    one, _ = read_checkpoint(tmp_path / "one" / "checkpoints")
    for name, value in one.items():
        np.testing.assert_allclose(mixed[name], value, rtol=2e-4, atol=2e-5, err_msg=name)


def test_the_step_is_traced_once(tmp_path, monkeypatch):
    traced = []
    loss = toy.Line.loss
    monkeypatch.setattr(toy.Line, "loss", lambda *given: (traced.append(1), loss(*given))[1])
    train(toy.experiment(num_steps=20), tmp_path)
    assert len(traced) == 1


@dataclasses.dataclass(frozen=True)
class Taught(toy.Line):
    """Learns what a frozen teacher says instead of the labels."""

    def frozen(self):
        return {"slope": jnp.full((4,), 3.0)}

    def loss(self, params, batch, call):
        batch = {**batch, "y": batch["x"] @ call.frozen["slope"]}
        loss, metrics = toy.Line.loss(self, params, batch, call)
        apart = jax.tree.map(lambda one, other: jnp.sum((one - other) ** 2), params, call.ema)
        apart = sum(jax.tree.leaves(apart))
        return loss, {**metrics, "told_step": call.step, "apart": apart}


def test_a_loss_is_told_the_step_the_average_and_what_is_frozen(tmp_path):
    experiment = toy.experiment(num_steps=20, log_every=1, checkpoint_every=20)
    train(dataclasses.replace(experiment, objective=Taught()), tmp_path, mesh=data_mesh(2))
    told = lines(tmp_path)
    assert [line["told_step"] for line in told] == list(range(20))
    assert told[0]["apart"] == 0 < told[19]["apart"]
    assert told[0]["loss"] > 20 and told[19]["loss"] < told[0]["loss"]  # 9 for each of 4 inputs
    arrays, _ = read_checkpoint(tmp_path / "checkpoints")
    assert not any("slope" in name or "frozen" in name for name in arrays)


def steps_taken(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").glob("[0-9]*"))


@dataclasses.dataclass(frozen=True)
class Unwritable(toy.Line):
    """A model with a field that no manifest can hold."""

    rule: Any = None


def test_what_no_manifest_can_hold_is_refused_before_the_first_step(tmp_path):
    experiment = dataclasses.replace(toy.experiment(), objective=Unwritable(rule=print))
    with pytest.raises(ConfigError, match="line.rule is print of builtins"):
        train(experiment, tmp_path)
    assert steps_taken(tmp_path) == [] and not (tmp_path / "weights").exists()


def test_a_policy_is_checked_before_the_first_step(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Local(FrameCausal):
        """A policy that no other process could import."""

    experiment = nano.config()
    system = experiment.objective.system
    local = dataclasses.replace(system, model=system.model.clone(policy=Local()))
    objective = dataclasses.replace(experiment.objective, system=local)
    with pytest.raises(ConfigError, match="model.policy is .*Local.*define it at the top"):
        train(dataclasses.replace(experiment, objective=objective), tmp_path)
    assert steps_taken(tmp_path) == []


def test_a_policy_goes_into_the_manifest(tmp_path):
    experiment = nano.config()
    system = experiment.objective.system
    causal = dataclasses.replace(system, model=system.model.clone(policy=FrameCausal(block=2)))
    params = jax.eval_shape(FlowMatching(causal).init, jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)
    export(FlowMatching(causal), experiment.package, tmp_path, zeros)
    assert read_manifest(tmp_path).component("model").policy == FrameCausal(block=2)


def test_missing_parts_are_named_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no work/vae is
    for config in (my_videos, tiny_t2v):
        experiment = config.config()
        package = tiny_t2v.config().package
        with pytest.raises(WeightsError, match="work/vae/weights/model.json does not exist"):
            train(dataclasses.replace(experiment, package=package), tmp_path / "run")
    parts = my_videos.config().package.parts
    assert all((Path(part) / "model.json").is_file() for part in parts)


def test_a_package_needs_components(tmp_path):
    with pytest.raises(ConfigError, match="Pair does not say which components"):
        packed = dataclasses.replace(pair.experiment(), package=toy.experiment().package)
        train(packed, tmp_path)


def test_sheets_without_a_preview_are_refused():
    with pytest.raises(ConfigError, match="no preview"):
        dataclasses.replace(toy.experiment(), preview=None)
