"""What the bench of attention measures."""

import json
import sys

import pytest

from pallas_kernels.attention import bench


def test_random_lists_have_the_density_that_was_asked():
    mask = bench.random_mask(heads=3, length=512, block=32, density=0.25, widest=0.5).check()
    assert float(mask.density) == 0.25
    assert mask.kv_indices.shape == (1, 3, 16, 8)


def test_the_table_has_a_row_per_density_beside_dense(monkeypatch, tmp_path, capsys):
    options = ["bench", "--lengths", "128", "--blocks", "32", "--densities", ".5", ".25"]
    options += ["--heads", "2", "--size", "8", "--json", str(tmp_path / "rows.json")]
    monkeypatch.setattr(bench, "seconds", lambda call, *inputs: (call(*inputs), 1e-3)[1])
    monkeypatch.setattr(sys, "argv", options)
    bench.main()
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["attention"] for row in rows] == ["dense", "xla 0.5", "xla 0.25"]
    work = 4 * 2 * 128**2 * 8 / 1e-3 / 1e12
    assert [row["forward_tflops"] for row in rows] == pytest.approx([work, work / 2, work / 4])
    assert [row["both_tflops"] for row in rows] == pytest.approx(
        [3.5 * work, 1.75 * work, 0.875 * work]
    )
    assert "xla 0.25" in capsys.readouterr().out


def test_a_density_out_of_range_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "--densities", "0"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "each must be in (0, 1]" in capsys.readouterr().err
