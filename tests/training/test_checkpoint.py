"""Which settings a run that goes on may have changed: those that do not change what it computes."""

import dataclasses
import gc
import re
import shutil
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import CheckpointError, WeightsError
from jvdm.experiment import Experiment
from jvdm.parallel.mesh import data_mesh, mesh_of
from jvdm.train import train
from jvdm.training import checkpoint, inventory, setup
from jvdm.training.checkpoint import FREE_FIELDS, Checkpoints, read_averages, read_checkpoint
from jvdm.training.optimizer import Optimizer
from tests.training import toy

BASE = toy.experiment(num_steps=2, checkpoint_every=2)
OTHERS: dict[str, Any] = {
    "name": "another",
    "objective": toy.Line(width=32),
    "source": toy.HostLines(batch_size=16),
    "optimizer": Optimizer(warmup_steps=3, weight_decay=0.5),
    "batch_size": 16,
    "seed": 7,
    "ema_decay": 0.5,
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(BASE, folder)
    return folder


@pytest.mark.parametrize("name", [*OTHERS, "start_from"])
def test_a_run_does_not_go_on_as_another_one(workdir, name, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"")
    value = OTHERS.get(name, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=f"{name}.*in the checkpoint, .* now"):
        train(dataclasses.replace(BASE, **{name: value}), workdir)


def test_another_model_is_refused_with_the_difference_of_its_arrays(workdir, monkeypatch):
    """As after a change of the code: the experiment says the same."""
    init = toy.Line.init

    def others(self, key):
        made = init(self, key)
        return {"gate": jnp.zeros(3), **made, "head": {"kernel": made["head"]["kernel"][:-1]}}

    monkeypatch.setattr(toy.Line, "init", others)
    with pytest.raises(CheckpointError, match="checkpoint 2 holds other arrays") as error:
        train(BASE, workdir)
    said = error.value.why
    assert "params/gate: absent in the checkpoint, [[3], 'float32'] now" in said
    assert re.search(r"params/head/kernel: \[\[16, 1\], .* in the checkpoint, \[\[15, 1\]", said)


def test_every_setting_is_free_or_tried_above():
    names = {field.name for field in dataclasses.fields(Experiment)}
    assert names == FREE_FIELDS | OTHERS.keys() | {"start_from"}


def test_what_a_failed_write_had_not_begun_says_nothing_afterwards(tmp_path, monkeypatch):
    """Python tells of a coroutine that is dropped before it ran, as orbax drops its writes."""

    async def write_fragment():
        raise AssertionError("is never run")

    def fails():
        left = write_fragment()
        raise ValueError(f"os_error_code='28' {left!r:.0}")

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with Checkpoints(tmp_path / "checkpoints") as checkpoints:
            monkeypatch.setattr(checkpoints._manager, "wait_until_finished", fails)
            with pytest.raises(CheckpointError, match="No space left on device"):
                checkpoints.wait()
            monkeypatch.undo()
        gc.collect()
    assert [str(one.message) for one in said if "never awaited" in str(one.message)] == []


def test_a_run_goes_on_on_another_mesh(tmp_path):
    """Of four parts of a batch, with parameters that are split, and on one device."""
    wide = dataclasses.replace(BASE, objective=toy.Line(width=256))
    longer = dataclasses.replace(wide, num_steps=3, checkpoint_every=3)
    train(wide, tmp_path / "begun")
    ends = {}
    for mesh in ("data=4", "fsdp=4", "data=2,fsdp=2", "fsdp=1"):
        shutil.copytree(tmp_path / "begun", tmp_path / mesh)
        devices = mesh_of(mesh, jax.devices()[: 1 if mesh == "fsdp=1" else 4])
        assert train(longer, tmp_path / mesh, "must", mesh=devices)["resumed_from"] == 2
        ends[mesh], _ = read_checkpoint(tmp_path / mesh / "checkpoints", 3)
    shapes = setup.state_shapes(wide.objective, Optimizer().build(2), 0, mesh_of("fsdp=4"))
    assert shapes.ema["layers_0"]["kernel"].sharding.shard_shape((4, 256)) == (4, 64)
    for name, array in ends["data=4"].items():
        largest = max(np.abs(array).max(initial=0), 1e-3)
        for mesh, moved in ends.items():
            np.testing.assert_allclose(moved[name], array, 0, 1e-5 * largest, err_msg=mesh + name)


def test_a_run_begins_with_the_averages_of_another_one_in_its_own_number_type(workdir, tmp_path):
    """Of the work directory the newest, or the step that is named."""
    averages = read_averages(workdir / "checkpoints")
    assert {"layers_0/kernel", "head/kernel"} == averages.keys()

    @dataclasses.dataclass(frozen=True)
    class Half(toy.Line):
        """The same model, kept in half precision."""

        def init(self, key):
            return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), super().init(key))

    transform = Optimizer().build(2)
    for place in (workdir, workdir / "checkpoints/2"):
        given = setup.given(Half(), place)
        state = setup.make_state(Half(), transform, 0, data_mesh(4), given)
        for name, leaf in inventory.by_name(state.params).items():
            assert leaf.dtype == jnp.bfloat16
            np.testing.assert_array_equal(leaf, averages[name].astype(jnp.bfloat16))
    with pytest.raises(WeightsError, match="head/kernel is .16, 1., needs .32, 1."):
        setup.given(toy.Line(width=32), workdir)
    with pytest.raises(CheckpointError, match="holds no finished checkpoint"):
        (tmp_path / "checkpoints").mkdir()
        setup.given(toy.Line(), tmp_path)


def test_a_slow_disk_is_told(workdir, tmp_path, monkeypatch):
    shutil.copytree(workdir, tmp_path / "run")
    monkeypatch.setattr(checkpoint, "SLOW_SECONDS", 0.0)
    with pytest.warns(UserWarning, match="is slow: training waited 0 s.*--checkpoint-every"):
        train(dataclasses.replace(BASE, num_steps=4), tmp_path / "run")
