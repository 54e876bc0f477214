"""What the bench of attention measures."""

import json
import sys
from xml.etree import ElementTree

import jax
import numpy as np
import pytest

from pallas_kernels.attention import bench, peers, plot
from pallas_kernels.attention.shapes import Shape


def test_random_lists_have_the_density_that_was_asked():
    mask = bench.random_mask(heads=3, length=512, block=32, density=0.25, widest=0.5).check()
    assert float(mask.density) == 0.25
    assert mask.kv_indices.shape == (1, 3, 16, 8)


def test_lists_of_neighbours_are_windows_of_about_the_density_that_was_asked():
    mask = bench.near_mask(heads=2, length=500, block=16, density=0.25, widest=0.5).check()
    place = np.arange(32)
    expected = np.abs(place[:, None] - place[None]) <= 4
    np.testing.assert_array_equal(mask.to_dense()[0], np.stack([expected] * 2))
    assert 0.22 < float(mask.density) < 0.28


def test_neighbours_are_timed_where_asked_beside_full_lists(monkeypatch, capsys):
    options = ["bench", "--lengths", "256", "--blocks", "16", "--densities", ".25", "--near"]
    monkeypatch.setattr(bench, "seconds", lambda call, *inputs, **_: 1e-3)
    monkeypatch.setattr(sys, "argv", [*options, "--heads", "2", "--size", "8"])
    bench.main()
    lines = capsys.readouterr().out.splitlines()[-3:]
    near = float(bench.near_mask(2, 256, 16, 0.25, 0.25).density)
    told = [f" {share:.3f} " in line for share, line in zip((1, 1, near), lines, strict=True)]
    assert near != 0.25 and all(told)


def test_the_table_has_a_row_per_density_beside_dense(monkeypatch, tmp_path, capsys):
    options = ["bench", "--lengths", "128", "--blocks", "32", "--densities", ".5", ".25"]
    options += ["--heads", "2", "--size", "8", "--json", str(tmp_path / "rows.json")]
    monkeypatch.setattr(bench, "seconds", lambda call, *inputs, **_: (call(*inputs), 1e-3)[1])
    monkeypatch.setattr(sys, "argv", options)
    bench.main()
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    shares = [1, 1, 0.5, 0.25]
    assert [row["attention"] for row in rows] == ["dense xla", "reference", "xla", "xla"]
    assert [row["density"] for row in rows] == shares
    work = 4 * 2 * 128**2 * 8 / 1e-3 / 1e12
    assert [row["forward_tflops"] / work for row in rows] == pytest.approx(shares)
    assert [row["both_tflops"] / work / 3.5 for row in rows] == pytest.approx(shares)
    said = capsys.readouterr().out
    assert "without tokamax: " in said and " 0.250 " in said


def test_a_picture_shows_how_many_times_faster_each_is():
    rows = [
        {"shape": "a", "block": 8, "attention": name, "density": share, "forward_s": 1 / gain}
        for name, share, gain in (("dense", 1.0, 1.0), ("ours", 1.0, 1.0), ("ours", 0.1, 10.0))
    ]
    rows = [{**row, "both_s": 2 * row["forward_s"]} for row in rows]
    root = ElementTree.fromstring(plot.speedups({"device": "<none>", "rows": rows}))
    assert "<none>" in "".join(root.itertext()) and "a, ours 8" in "".join(root.itertext())
    lines = [line.get("points", "") for line in root.iter() if line.tag.endswith("polyline")]
    ideal, *_, forward, both = lines
    assert set(forward.split()) == set(both.split()) == set(ideal.split())


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    assert peers.missing("flex_attention") == "torch is not installed"
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: name)
    assert jax.default_backend() == "gpu" or "is cpu, not gpu" in peers.missing("tokamax")


def test_a_peer_that_cannot_serve_a_call_says_why_and_the_others_are_timed(monkeypatch, capsys):
    def refuse(inputs, mask):
        raise RuntimeError("flags: 3\nValueError: blocks of 32 are too small\nsee the log")

    monkeypatch.setitem(peers.PEERS, "refusing", peers.Peer("torch", True, refuse))
    monkeypatch.setattr(bench, "seconds", lambda call, *inputs, **_: 1e-3)
    rows = list(bench.measure(Shape((1, 1, 128), 2, 8, 1), 32, [0.5], ["refusing"]))
    assert [row["attention"] for row in rows] == ["dense xla", "reference", "xla"]
    said = capsys.readouterr().err.splitlines()
    assert said == 2 * ["without refusing at blocks of 32: ValueError: blocks of 32 are too small"]


@pytest.mark.parity
def test_flex_attention_is_given_the_same_lists():
    pytest.importorskip("torch")
    mask = bench.random_mask(2, 128, 16, 0.25, 0.5)
    theirs = peers.flex_lists(mask, "cpu").to_dense().numpy()
    np.testing.assert_array_equal(theirs, mask.to_dense())


def test_a_density_out_of_range_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "--densities", "0"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "each must be in (0, 1]" in capsys.readouterr().err
