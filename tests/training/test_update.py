"""An objective that moves its parameters itself: two optimizers in the one training loop."""

import dataclasses
import json

import numpy as np
import pytest

from jvdm.errors import Preempted
from jvdm.train import train
from jvdm.training.checkpoint import read_checkpoint
from tests.training import pair


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    train(pair.experiment(), workdir)
    return workdir


def arrays(workdir, step=None):
    return read_checkpoint(workdir / "checkpoints", step)[0]


def test_a_generator_and_its_critic_learn_in_turns(whole):
    found = arrays(whole)
    apart = np.abs(found["ema/generator/shift"] - pair.MEAN)
    assert apart.max() < 0.3  # it began 3 and 1 away
    np.testing.assert_allclose(np.abs(found["ema/generator/scale"]), pair.STD, atol=0.3)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert all(line["generator_moves"] == 0.5 for line in lines)
    counts = {name: int(value) for name, value in found.items() if name.endswith("count")}
    assert any("generator" in name for name in counts) and set(counts.values()) == {1000}


def test_two_optimizers_continue_with_the_same_bits(whole, tmp_path):
    # An odd number of steps: the generator's turn comes first when the run goes on.
    with pytest.raises(Preempted, match="at step 777 of 2000"):
        train(pair.experiment(stop_at=777), tmp_path)
    result = train(pair.experiment(stop_at=777), tmp_path)
    assert result["resumed_from"] == 777 and result["step"] == 2000
    one, other = arrays(whole), arrays(tmp_path)
    assert [name for name in one if one[name].tobytes() != other[name].tobytes()] == []


def test_a_non_finite_step_of_an_own_update_is_taken_back(tmp_path):
    short = dataclasses.replace(
        pair.experiment(bad_at=6), num_steps=8, log_every=1, checkpoint_every=1, keep_checkpoints=9
    )
    train(short, tmp_path)
    before, after, later = (arrays(tmp_path, step) for step in (6, 7, 8))
    moved = [name for name in before if before[name].tobytes() != after[name].tobytes()]
    assert sorted(moved) == ["skipped", "skipped_in_row", "step"]
    assert later["skipped"] == 1 and later["skipped_in_row"] == 0
