"""The bench of published families: their sizes, and what it times."""

import json

import jax
import numpy as np
import pytest

from jvdm import bench, cli, families

COUNTS = {
    "wan-1.3b-480p": (1_418_996_800, 126_892_531),
    "wan-14b-480p": (14_288_491_584, 126_892_531),
    "wan-5b-720p": (4_999_787_712, 704_688_668),
    "ltx-2b-512p": (1_923_385_472, 419_193_649),
    "ltx-13b-512p": (13_042_155_648, 419_193_649),
}
"""Parameters of the published transformers and autoencoders."""


@pytest.mark.parametrize("name", COUNTS)
def test_networks_have_the_published_numbers_of_parameters(name, monkeypatch):
    monkeypatch.setattr(families, "random_parameters", lambda shapes, network: shapes)
    family = families.FAMILIES[name]
    made = families._network(family)[1], families._autoencoder(family)[1]
    counts = [sum(leaf.size for leaf in jax.tree.leaves(shapes)) for shapes in made]
    np.testing.assert_allclose(counts, COUNTS[name], rtol=1e-3)


def test_families_are_timed_part_by_part_beside_what_is_there(monkeypatch, tmp_path, capsys):
    clock = iter([0.1, 0.5, 1.2])

    def timed(call, *inputs, **_):
        made = jax.tree.leaves(call(*inputs))
        assert all(np.isfinite(leaf).all() and np.std(leaf) > 0 for leaf in made)
        shapes.append(np.concatenate(made, 1).shape)
        return next(clock)

    shapes = []
    monkeypatch.setattr(families, "seconds", timed)
    monkeypatch.setattr(families, "missing", lambda: "")
    monkeypatch.setitem(families.PARTS, "transformer", lambda family: (0.15, 2.0))
    monkeypatch.setitem(families.PARTS, "decode", lambda family: (2.0, None))
    assert cli.main(["bench", "families", "--output", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "families.json").read_text())["rows"]
    assert shapes == [(1, 3, 4, 4, 16), (1, 5, 8, 8, 3), (1, 5, 8, 8, 3)]
    assert [row["part"] for row in rows] == ["transformer", "decode", "video"]
    assert [row.get("ratio") for row in rows] == pytest.approx([1.5, 4.0, None])
    assert rows[0]["gib"] > 0
    text = capsys.readouterr().out
    assert "wan-tiny       transformer   100.0" in text and "150.0    2.00    1.50" in text


def test_an_autoencoder_that_decodes_whole_videos_is_timed_so(monkeypatch):
    family = families.FAMILIES["ltx-2b-512p"]
    widths = {"block_out_channels": [4] * 4, "decoder_block_out_channels": [4] * 4}
    blocks = {"layers_per_block": [1] * 5, "decoder_layers_per_block": [1] * 5}
    fields = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8}
    monkeypatch.setattr(families, "seconds", lambda call, *inputs: made.append(call(*inputs)) or 1)
    tiny = family._replace(
        transformer={**family.transformer, **fields},
        vae={**family.vae, **widths, **blocks},
        latents=(2, 2, 2, 128),
        prompt=(3, 8),
    )
    monkeypatch.setitem(families.FAMILIES, "tiny", tiny)
    made = []
    assert [row["part"] for row in families.rows(("tiny",), peers=False)] == [*families.PARTS]
    assert [x.shape for x in made] == [(1, 2, 2, 2, 128), (1, 9, 64, 64, 3), (1, 9, 64, 64, 3)]
    assert all(np.isfinite(x).all() and np.std(x) > 0 for x in made)


def test_what_is_missing_is_named_and_nothing_else_is_timed(monkeypatch, tmp_path):
    monkeypatch.setattr(families, "rows", lambda names, peers: iter([{"peers": peers}]))
    for asked, why in ((True, "is not installed"), (False, "not asked for")):
        monkeypatch.setattr(families.importlib.util, "find_spec", lambda name: None)
        options = bench.BenchOptions("families", peers=asked, output=tmp_path)
        found = bench.run(options)
        assert why in found["missing"]["diffusers"] and found["rows"] == [{"peers": False}]
