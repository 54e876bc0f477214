"""The bench of several devices beside one: what it times, and that both say the same."""

import json

import jax
import pytest

from jvdm import cli, scaling

FEW = ("draft .25", "guided", "training")
"""Parts that compute what the others do, and more."""


def test_all_devices_say_what_one_says_and_their_times_are_beside_each_other(
    monkeypatch, tmp_path, capsys
):
    clock = iter([0.4, 0.1, 0.2, 0.1])

    def timed(call, *inputs):
        jax.block_until_ready(call(*inputs))
        return next(clock)

    monkeypatch.setattr(scaling, "seconds", timed)
    monkeypatch.setattr(scaling, "PARTS", {name: scaling.PARTS[name] for name in FEW})
    assert cli.main(["bench", "parallel", "--output", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "parallel.json").read_text())
    call, guided, training = result["rows"]
    assert result["devices"] == 4 and call["mesh"] == "sequence=4" and training["mesh"] == "fsdp=4"
    assert call["ratio"] == pytest.approx(4.0) and training["one_seconds"] > 0
    assert 0 < call["error"] < 1e-5 and 0 < training["error"] < 1e-5
    assert guided["mesh"] == "branch=4" and guided["ratio"] == pytest.approx(2.0)
    assert guided["error"] < 1e-5 and guided["gib"] < guided["one_gib"]  # of one branch
    assert training["gib"] < 0.6 * training["one_gib"]  # parameters and optimizer are split
    text = capsys.readouterr().out
    assert "4 of cpu" in text and "wan-tiny       draft .25   sequence=4    400.0" in text


def test_one_device_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert cli.main(["bench", "parallel", "--output", str(tmp_path)]) == 2
    assert "there is one device" in capsys.readouterr().err
