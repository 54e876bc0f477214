"""Which settings a run that goes on may have changed: those that do not change what it computes."""

import dataclasses
import gc
import warnings
from typing import Any

import pytest

from jvdm.errors import CheckpointError
from jvdm.experiment import Experiment
from jvdm.train import train
from jvdm.training.checkpoint import FREE_FIELDS, Checkpoints
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
