"""Metrics reach the sinks without holding up the steps; speed and utilisation add up."""

import contextlib
import importlib
import sys
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import NumericsError
from jvdm.training import progress as progress_module
from jvdm.training import sinks
from jvdm.training.progress import Progress, peak_flops


class Kept:
    def __init__(self):
        self.lines = []

    def write(self, line):
        self.lines.append(line)


def make(sink, kinds=("NVIDIA H200", "NVIDIA H200"), **settings):
    base = {"batch_size": 8, "flops_per_step": 989e12, "max_skipped": 3}
    return Progress([contextlib.nullcontext(sink.write)], **(base | settings), device_kinds=kinds)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 MIG 1g.10gb", None),
        ("TPU v50", None),
        ("cpu", None),
    ],
)
def test_the_peak_of_known_devices(kind, peak):
    assert peak_flops(kind) == peak


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (["cpu", "cpu"], ""),
        (["NVIDIA H200", "NVIDIA H900"], "the peak of NVIDIA H900 is not known"),
    ],
)
def test_devices_without_a_known_peak_have_no_utilisation(kinds, said, capsys):
    assert "mfu" not in make(Kept(), kinds=kinds)._speed(1, 1.0)
    assert said in (printed := capsys.readouterr().err) and bool(printed) == bool(said)


def test_speed_counts_all_steps_and_no_pause():
    sink = Kept()
    with make(sink) as progress:
        progress.restart_clock()
        for step in range(1, 5):
            time.sleep(0.02)
            progress.collect({"loss": jnp.float32(step)})
            if step == 2:
                with progress.paused(step):
                    time.sleep(0.3)
        progress.close_interval(4)
        with progress.paused(4):
            pass
    assert [line["loss"] for line in sink.lines] == [1.5, 3.5]
    total = progress.overall()
    assert 0.08 <= total["seconds"] < 0.25
    assert total["clips_per_second"] == pytest.approx(8 * 4 / total["seconds"])
    # One step of one device-second of work on two devices.
    assert total["mfu"] == pytest.approx(0.5 / total["seconds_per_step"])


def test_the_main_thread_goes_on_while_metrics_are_fetched(monkeypatch):
    """Fetching waits, as it would for a busy device; collecting and closing do not."""
    release, fetch = threading.Event(), progress_module.jax.device_get
    monkeypatch.setattr(
        progress_module.jax, "device_get", lambda tree: (release.wait(20), fetch(tree))[1]
    )
    sink = Kept()
    with make(sink) as progress:
        progress.collect({"loss": jnp.float32(1)})
        began = time.perf_counter()
        progress.close_interval(1)
        progress.collect({"loss": jnp.float32(2)})
        assert time.perf_counter() - began < 5 and not sink.lines
        release.set()
        progress.close_interval(2)
        assert [line["step"] for line in sink.lines] == [1]


def test_means_ignore_skipped_steps_and_counts_do_not():
    sink = Kept()
    with make(sink) as progress:
        for loss, skipped, row in ((1.0, 0, 0), (np.nan, 1, 1), (np.inf, 2, 2), (3.0, 2, 0)):
            metrics = {"loss": loss, "skipped": skipped, "skipped_in_row": row}
            progress.collect({name: jnp.float32(value) for name, value in metrics.items()})
        with progress.paused(4):
            pass
    assert sink.lines[0]["loss"] == 2.0
    assert sink.lines[0]["skipped"] == 2 and sink.lines[0]["skipped_in_row"] == 2


def test_too_many_skipped_steps_stop_the_main_thread():
    with make(Kept()) as progress:
        progress.collect({"loss": jnp.float32(np.nan), "skipped_in_row": jnp.int32(3)})
        progress.close_interval(1)
        with pytest.raises(NumericsError, match="3 steps in a row up to step 1"):
            progress.close_interval(2)


def test_json_lines_hold_no_bare_nan(tmp_path):
    with sinks.json_lines(tmp_path / "metrics.jsonl", start=0) as write:
        write({"step": 1, "loss": float("nan")})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null}\n'


def test_tensorboard_gets_every_number_and_drops_what_was_written_later(tmp_path):
    pytest.importorskip("tensorboardX")
    with sinks.tensorboard(tmp_path, start=7) as write:
        write({"step": 8, "loss": 0.5, "clips_per_second": 3.0, "note": "text"})
    (events,) = tmp_path.iterdir()
    assert b"loss" in events.read_bytes() and b"clips_per_second" in events.read_bytes()
    assert b"note" not in events.read_bytes()
    begins = [event for event in read_events(events) if event.HasField("session_log")]
    assert [(event.step, event.session_log.status) for event in begins] == [(8, 1)]


def read_events(path):
    """Gives the records of an event file: length, checksum, event, checksum."""
    Event = importlib.import_module("tensorboardX.proto.event_pb2").Event

    data = path.read_bytes()
    while data:
        size = int.from_bytes(data[:8], "little")
        yield Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]


def test_without_tensorboardx_the_run_says_so_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with sinks.tensorboard(tmp_path, start=0) as write:
        write({"step": 1, "loss": 0.5})
    assert "tensorboardX is not installed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
