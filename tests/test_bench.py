"""The bench of a network: what it times, and what sparse attention costs in fidelity."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm import bench, cli
from jvdm.attention import POLICIES, SVG2, AdaSpa, Draft
from jvdm.errors import ConfigError
from jvdm.models import stand_in
from jvdm.samplers import Call
from pallas_kernels.attention import tables, tune
from pallas_kernels.attention.mosaic_gpu import MosaicGPU
from pallas_kernels.attention.pallas_tpu import schedule
from pallas_kernels.attention.shapes import SHAPES, Shape
from tests.attention.test_sparse import EVEN, call_on, moving
from tests.attention.test_svg2 import among

TOY = Shape((2, 6, 8), 2, 16, 2)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(SHAPES, "toy", TOY)
    monkeypatch.setattr(stand_in, "TEXT", (3, 8))


@pytest.mark.slow
def test_a_network_is_timed_beside_dense_and_its_price_printed(monkeypatch, tmp_path, capsys):
    draft, chance = (0.1, 0.1, 0.07, 0.04), (0.2, 0.2, 0.1, 0.1)
    clock = iter([0.4, *draft, *chance])  # the last three of each: the plan
    monkeypatch.setattr(bench.bench, "seconds", lambda *_, **__: next(clock))
    options = ["bench", "model", "--shape", "toy", "--output", str(tmp_path), "--densities", ".04"]
    options += ["--dense-layers", "0"]
    assert cli.main(options) == 0
    found = json.loads((tmp_path / "model.json").read_text())
    dense, draft, chance = found["rows"]
    assert (dense["policy"], dense["error"], dense["psnr"]) == ("dense", 0, 100)
    assert (draft["speedup"], chance["speedup"]) == pytest.approx((4, 2))
    assert draft["phases"] == {"dense": 0.4, "sparse": 0.1}  # known: rows of dense attention
    assert (draft["plan"], chance["plan"]) == (pytest.approx(1), 0)
    assert draft["run_speedup"] == pytest.approx(50 * 0.4 / (12 * 0.4 + 38 * 0.1))
    assert draft["density"] == chance["density"] == pytest.approx(4 / 96, abs=1e-3)
    assert draft["recall"] > chance["recall"] + 0.1
    assert 0 < draft["error"] < chance["error"] / 2
    assert draft["psnr"] > chance["psnr"] and draft["ssim"] > chance["ssim"]
    assert "toy            draft               0.04    0.042" in capsys.readouterr().out


@pytest.mark.slow
def test_runs_with_step_caches_are_timed_row_by_row(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench.bench, "seconds", lambda *_, **__: 1.0)
    options = ["bench", "model", "--shape", "toy", "--output", str(tmp_path), "--densities", ".25"]
    options += ["--policies", "draft", "--caches", "every", "regions"]
    assert cli.main(options) == 0
    found = json.loads((tmp_path / "model.json").read_text())
    rows = {row["policy"]: row for row in found["rows"]}
    assert list(rows) == ["dense", "draft", "every", "draft+every", "regions"]
    assert rows["every"]["computed"] == (3 + 23) / 50  # above .95, and every other one of 47
    assert 0.5 < rows["regions"]["computed"] < 0.6  # all tokens above .95 and in every 13th row
    for name in ("every", "regions"):
        assert rows[name]["speedup"] == pytest.approx(1 / rows[name]["seconds"])
        assert 0 < rows[name]["error"] < 0.5 and rows[name]["psnr"] < 60
    assert rows["draft+every"]["dense_share"] > rows["draft"]["dense_share"]  # its first rows
    assert "toy            draft+every         0.25" in capsys.readouterr().out
    picture = (tmp_path / "toy.svg").read_text()
    assert [f">{name}<" in picture for name in ("dense", "draft 0.25", "every")] == [
        False,
        True,
        True,
    ]


@pytest.mark.slow
def test_what_a_policy_found_is_as_old_as_in_a_run(monkeypatch):
    monkeypatch.setattr(bench.bench, "seconds", lambda *_, repeats: 1.0 * repeats)
    shape, video = SHAPES["toy"], []
    monkeypatch.setattr(bench.stand_in, "compiled", functools.partial(_watched, video))
    policies = {("dense", 1.0): POLICIES["dense"], ("adaspa", 0.25): AdaSpa(density=0.25)}
    _, row = bench.rows_of_model({"toy": shape}, policies, 0)
    assert row["phases"] == {"dense": 3, "search": 1, "reuse": 3, "again": 1}  # rare ones are slow
    *before, last = video[1:]
    assert all((x == before[0]).all() for x in before) and not (last == before[0]).all()
    assert (last == video[0]).all()  # what dense attention saw
    assert row["density"] == pytest.approx(0.25, abs=0.01) and row["dense_share"] == 0


def test_the_share_of_choosing_blocks_is_that_of_what_is_left_without_attention(monkeypatch):
    def seconds(forward, *_, repeats):
        policy = forward.policy
        if not isinstance(policy, stand_in.Unattended):
            return 3.0
        return 1.4 if policy.chooses else 1.0

    monkeypatch.setattr(bench.bench, "seconds", seconds)
    parts = bench.plan_parts(TOY, Draft())
    assert bench.plan_share(TOY, Draft(), parts, ()) == pytest.approx(0.4 / 1.6)
    monkeypatch.setattr(bench.bench, "seconds", lambda *_, **__: 1.0)
    assert bench.plan_share(TOY, Draft(), parts, ()) is None


def test_rows_that_search_count_as_often_as_they_come(monkeypatch):
    def seconds(forward, *given, repeats):
        searches = int(given[-1].row.index) % 4 == 0
        policy = forward.policy
        if not isinstance(policy, stand_in.Unattended):
            return 5.0 if searches else 3.0
        return (3.0 if searches else 1.2) if policy.chooses else 1.0

    monkeypatch.setattr(bench.bench, "seconds", seconds)
    kept, row = SVG2(every=4), stand_in.row(TOY, 5)
    parts = bench.plan_parts(TOY, kept)
    listed, attended = (3.0 + 3 * 1.2) / 4 - 1, (5.0 + 3 * 3.0) / 4 - (3.0 + 3 * 1.2) / 4
    assert bench.plan_share(TOY, kept, parts, ()) == pytest.approx(listed / attended)
    assert bench.plan_share(TOY, kept, parts, (), row) == pytest.approx(0.2 / 1.8)


@pytest.mark.parametrize("kind", [Draft, SVG2])
def test_without_its_attention_a_policy_chooses_as_ever(kind):
    grid, policy = EVEN, kind(density=0.3, block=4, recall_queries=9)
    (q, k, v), call, plain = moving(grid), call_on(grid), stand_in.Unattended(policy, False)
    _, known = policy.attend(q, k, v, policy.init(grid), call, among)
    out, state = stand_in.Unattended(policy).attend(q, k, v, policy.init(grid), call, among)
    jax.tree.map(np.testing.assert_array_equal, state, known)
    np.testing.assert_allclose(out, q, atol=1e-6)
    out, state = plain.attend(q, k, v, policy.init(grid), call, among)
    np.testing.assert_allclose(out, q, atol=1e-6)
    assert float(state.tally.calls if kind is SVG2 else state.calls) == 0
    nan = v.at[0, -1, -1, -1].set(jnp.nan)  # all that attention reads is read
    out, _ = stand_in.Unattended(policy).attend(q, k, nan, policy.init(grid), call, among)
    assert np.isnan(out).any()


def _watched(seen, networks, *_):
    def call(forward, params, x, *others):
        seen.append(x)
        return forward(params, x, *others)

    return {name: functools.partial(call, stand_in.program(one)) for name, one in networks.items()}


def test_queries_and_keys_of_a_network_are_sharp_and_of_a_prompt_plain():
    params = stand_in.parameters(jax.random.key(0), TOY)
    layers = params["layers"]
    for name, gain in (("self_attention", stand_in.SHARPNESS), ("cross_attention", 1.0)):
        for norm in ("q_norm", "k_norm"):
            np.testing.assert_array_equal(layers[name][norm]["gain"], gain)


def test_regions_move_and_are_compact():
    video = np.asarray(stand_in.moving_regions(jax.random.key(0), SHAPES["tiny"])[0])
    assert video.shape == (9, 16, 16, stand_in.CHANNELS)

    def likeness(one, two):
        return (one * two).sum(-1).mean() / (video**2).sum(-1).mean()

    near = likeness(video[:, 1:], video[:, :-1])
    assert near > 0.5 and near > likeness(video[:, 8:], video[:, :8]) + 0.3
    assert likeness(video[1:], video[:-1]) > likeness(video[8:], video[:1])


def test_attention_is_timed_and_drawn(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench.bench, "seconds", lambda *_, **__: 1e-3)
    options = ["bench", "attention", "--shape", "toy", "--blocks", "8", "--densities", ".5", ".1"]
    assert cli.main([*options, "--output", str(tmp_path), "--json"]) == 0
    found = json.loads((tmp_path / "attention.json").read_text())
    assert json.loads(capsys.readouterr().out)["rows"] == found["rows"]
    assert [row["attention"] for row in found["rows"]] == ["dense xla", "reference", "xla", "xla"]
    assert [row["density"] for row in found["rows"]] == pytest.approx([1, 1, 0.5, 1 / 12])
    assert "torch" in found["missing"]["flex_attention"] or "gpu" in found["missing"]["tokamax"]
    assert (tmp_path / "attention.svg").read_text().startswith("<svg ")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"shape": ("wan-1.3b",)}, "no shape 'wan-1.3b'.*wan-1.3b-480p"),
        ({"policies": ("dense",)}, "a sparse policy called 'dense'"),
        ({"densities": (0.0,)}, "density is 0"),
        ({"caches": ("evry",)}, "a step cache called 'evry'.*every"),
        ({"caches": ("none",)}, "a step cache called 'none'"),
        ({"caches": ("mag",)}, "calibrat"),
        ({"densities": (0.001,)}, "less than one of 96 blocks"),
        ({"dense_layers": 2}, "the network has 2 layers"),
        ({"what": "attention", "blocks": (0,)}, "a block of 0 tokens"),
    ],
)
def test_what_cannot_be_timed_is_refused(asked, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        bench.run(
            bench.BenchOptions(**{"what": "model", "shape": ("toy",), **asked}, output=tmp_path)
        )


def test_a_network_of_a_video_model_has_its_size():
    shape = SHAPES["wan-1.3b-720p"]
    assert shape.length == 75_600
    model = stand_in.network(shape, POLICIES["dense"])
    assert (model.width, model.depth, sum(model.rotary_axes)) == (1536, 30, 128)
    x = jnp.zeros((1, 1, 2, 2, 16))
    told = stand_in.told(jnp.zeros((1, 3, 4096)))
    params = jax.eval_shape(model.init, jax.random.key(0), x, Call.at(x[..., 0, 0, 0]), told)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert abs(count / 1_418_996_800 - 1) < 0.05  # Wan 2.1 1.3B


def tuned(folder, *options):
    return cli.main(["bench", "tune", "--output", str(folder), *options])


@pytest.fixture
def fastest(monkeypatch):
    """Gives a GPU on which the last choice of each pass is the fastest."""
    clock = iter(range(1000, 0, -1))
    monkeypatch.setattr(tune, "seconds", lambda *_, **__: next(clock) / 1e3)
    monkeypatch.setattr(tune, "gpu", functools.partial(tune.gpu, (128,), ((128, 128),), 512))
    monkeypatch.setattr(MosaicGPU, "refusal_of_device", lambda _: "")
    monkeypatch.setattr(MosaicGPU, "forward", lambda *_, **__: (None, jnp.zeros((1, 1, 1))))
    monkeypatch.setattr(MosaicGPU, "backward", lambda *_, **__: jnp.zeros(()))
    return {
        "forward": list(tune.ForwardSizes.possible(128, 128, 128))[-1]._asdict(),
        "backward": list(tune.BackwardSizes.possible(128, 128))[-1]._asdict(),
    }


def test_the_fastest_tiles_go_into_the_users_table_which_kernels_then_read(
    fastest, monkeypatch, tmp_path, capsys
):
    packaged = tables.PACKAGED.read_bytes()
    assert tuned(tmp_path) == 0
    table = tmp_path / "tiles.json"
    assert f"use after\nexport PALLAS_KERNELS_TILES={table}\n" in capsys.readouterr().out
    device = jax.devices()[0].device_kind
    written = json.loads(table.read_text())["mosaic_gpu"][device]
    assert written["from"] == f"jvdm bench tune, jax {jax.__version__}"
    assert written["forward"]["128x128x128"] == fastest["forward"]
    assert written["backward"]["128x128"] == fastest["backward"]
    with pytest.raises(KeyError):
        json.loads(packaged)["mosaic_gpu"][device]
    monkeypatch.setenv(tables.VARIABLE, str(table))
    assert tables.entry("mosaic_gpu", device, "forward", "128x128x128") == (
        fastest["forward"],
        device,
    )
    assert tables.PACKAGED.read_bytes() == packaged


def test_tiles_of_tpus_are_chosen_by_the_schedule_of_each(monkeypatch, tmp_path, capsys):
    """Where a step takes as many instructions for less, the most parts at once are cheapest."""
    fixed = dict.fromkeys(schedule.PASSES, schedule.Loop(10**6, 10**6))
    monkeypatch.setattr(schedule, "loops", lambda chip, block, choices: [fixed] * len(choices))
    monkeypatch.setattr(tune, "refusal", lambda _: "")
    table = tmp_path / "mine.json"
    assert tuned(tmp_path, "--chips", "v5e", "v6e", "--table", str(table), "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert {row["device"] for row in result["rows"]} == {"v5e", "v6e"}
    written = json.loads(table.read_text())["pallas_tpu"]
    for chip in ("v5e", "v6e"):
        found = written[chip]["forward"]["128"]
        rows = [row for row in result["rows"] if (row["device"], row["pass"]) == (chip, "forward")]
        best = min((row for row in rows if row["blocks"] == "128"), key=lambda row: row["cost"])
        assert found == best["sizes"] and len(rows) > 10
        assert written[chip]["from"].startswith("jvdm bench tune --chips v5e v6e")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "compute capability unknown, not 9.0"),
        (("--chips", "v5"), "there is no chip 'v5'.*v5e"),
        (("--chips", "v5e", "--table", "PACKAGED"), "the package's own"),
        (("--chips", "v5e", "--table", "HALF"), "cannot be read as tables"),
        (("--chips", "v5e", "--table", "OTHER"), "no tables of mosaic_gpu"),
        (("--chips", "v5e"), "no choice for v5e was compiled"),
    ],
)
def test_what_cannot_be_tuned_is_refused(options, message, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(schedule, "loops", lambda chip, block, choices: [{}] * len(choices))
    monkeypatch.setattr(tune.importlib.util, "find_spec", lambda _: object())
    files = {"PACKAGED": tables.PACKAGED, "HALF": tmp_path / "half", "OTHER": tmp_path / "other"}
    files["HALF"].write_text("{")
    files["OTHER"].write_text("[]")
    assert tuned(tmp_path, *(str(files.get(word, word)) for word in options)) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "tiles.json").exists()
    assert files["HALF"].read_text() == "{"


def test_what_is_lacking_or_of_another_bench_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tune.importlib.util, "find_spec", lambda _: None)
    assert tuned(tmp_path, "--chips", "v5e") == 2
    assert "libtpu, which is not installed; pip install libtpu" in capsys.readouterr().err
    assert cli.main(["bench", "attention", "--quick", "--output", str(tmp_path)]) == 2
    assert "use jvdm bench tune" in capsys.readouterr().err


def test_a_table_that_the_environment_names_and_is_not_there_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv(tables.VARIABLE, str(tmp_path / "none.json"))
    with pytest.raises(ValueError, match=r"none\.json cannot be read.*PALLAS_KERNELS_TILES"):
        tables.about("mosaic_gpu", "NVIDIA H200")
