"""Tile sizes come from tables, which a command writes: what they hold is what kernels use."""

import functools
import json
from typing import Any

import jax
import numpy as np
import pytest

from pallas_kernels import BlockMask, explain
from pallas_kernels.attention import tables, tune
from pallas_kernels.attention.kernel import attend
from pallas_kernels.attention.mosaic_gpu import MosaicGPU
from pallas_kernels.attention.mosaic_gpu.sizes import BackwardSizes, ForwardSizes
from pallas_kernels.attention.pallas_tpu import PallasTPU, schedule
from pallas_kernels.attention.pallas_tpu.tiles import Limits
from tests.pallas_kernels.cases import random_inputs

MASK = BlockMask.full(256, 256, 128, 128)
PACKAGED = json.loads(tables.PACKAGED.read_text())
HOPPER = list(PACKAGED["mosaic_gpu"])[-1]


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """Serves a copy of the tables, in which a call edits an entry."""
    copy, known = tmp_path / "tiles.json", json.loads(json.dumps(PACKAGED))
    copy.write_text(json.dumps(known))
    monkeypatch.setenv(tables.VARIABLE, str(copy))

    def edit(kernel: str, part: str, blocks: str, **sizes: int) -> None:
        (*_, device) = known[kernel]
        known[kernel][device][part][blocks] |= sizes
        copy.write_text(json.dumps(known))
        tables.tables.cache_clear()

    return edit


def program(kernel: Any) -> str:
    """Both passes, as they are traced."""
    q, k, v, d_out, d_lse = random_inputs(0, MASK, heads=1, kv_heads=1, size=128, dtype="bfloat16")

    def both(q, k, v):
        out, pull = jax.vjp(lambda *x: attend(kernel, *x, MASK, 0.1), q, k, v)
        return out, pull((d_out, d_lse.astype("float32")))

    return str(jax.make_jaxpr(both)(q, k, v))


@pytest.mark.parametrize(
    ("kernel", "part", "blocks", "sizes"),
    [
        ("mosaic_gpu", "forward", "128x128x128", {"q": 64, "kv": 64, "k_stages": 3}),
        ("mosaic_gpu", "backward", "128x128", {"out_stages": 3}),
        ("mosaic_gpu", "backward", "64x128", {"q_stages": 3}),  # of other blocks
        *(("pallas_tpu", part, "128", {"keys": 128, "parts": 1}) for part in schedule.PASSES),
    ],
)
def test_an_edited_entry_is_another_kernel(kernel, part, blocks, sizes, edited):
    kinds = {"mosaic_gpu": MosaicGPU(processors=132), "pallas_tpu": PallasTPU(interpret=True)}
    before = traced(kinds[kernel])
    edited(kernel, part, blocks, **sizes)
    assert (program(kinds[kernel]) == before) == (blocks == "64x128")


traced = functools.cache(program)  # with the tables as they are packaged


def test_blocks_that_are_not_documented_have_the_sizes_of_smaller_ones(edited):
    edited("pallas_tpu", "forward", "256", parts=3)
    (*_, chip) = PACKAGED["pallas_tpu"]
    for block, documented in ((64, 128), (128, 128), (384, 256), (2048, 512)):
        expected = tables.tables(tables.path())["pallas_tpu"][chip]["forward"][str(documented)]
        assert Limits.of(chip, "forward", block)._asdict() == expected
    assert Limits.of(chip, "forward", 384).parts == 3


@pytest.mark.parametrize("device", [HOPPER, "NVIDIA H300"])
def test_a_file_that_is_older_than_some_blocks_has_the_sizes_of_the_package(
    device, tmp_path, monkeypatch
):
    known = json.loads(json.dumps(PACKAGED))
    known["mosaic_gpu"][device] = known["mosaic_gpu"].pop(HOPPER)
    del known["mosaic_gpu"][device]["forward"]["192x128x64"]
    known["mosaic_gpu"][device]["forward"]["128x128x64"]["k_stages"] = 2
    (tmp_path / "old.json").write_text(json.dumps(known))
    monkeypatch.setenv(tables.VARIABLE, str(tmp_path / "old.json"))
    packaged = PACKAGED["mosaic_gpu"][HOPPER]["forward"]
    assert ForwardSizes.of(device, 384, 128, 64)._asdict() == packaged["192x128x64"]
    assert ForwardSizes.of(device, 128, 128, 64).k_stages == 2


def test_a_device_that_is_not_documented_has_the_sizes_of_the_newest_and_is_told_so(monkeypatch):
    assert tables.about("mosaic_gpu", HOPPER) == ""
    text = f"its tiles are those of {HOPPER}: it has none for NVIDIA H300"
    assert tables.about("mosaic_gpu", "NVIDIA H300") == text
    device: Any = type("H300", (), {"compute_capability": "9.0", "device_kind": "NVIDIA H300"})
    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    q, k, *_ = random_inputs(0, MASK, size=128, dtype="bfloat16")
    for asked in (None, "mosaic_gpu"):
        assert text in explain(q, k, MASK, asked).reason
    device.device_kind = HOPPER
    assert explain(q, k, MASK).reason == "it is the kernel for this device"


def test_every_entry_can_run():
    """Hopper: memory and barriers suffice. TPU: steps are of whole lanes."""
    for device, parts in PACKAGED["mosaic_gpu"].items():
        for blocks in parts["forward"]:
            sizes = tuple(map(int, blocks.split("x")))
            assert ForwardSizes.of(device, *sizes) in ForwardSizes.possible(*sizes), blocks
        for blocks in parts["backward"]:
            sizes = tuple(map(int, blocks.split("x")))
            assert BackwardSizes.of(device, *sizes) in BackwardSizes.possible(*sizes), blocks
    for chip, parts in PACKAGED["pallas_tpu"].items():
        for name in schedule.PASSES:
            for limits in (Limits.of(chip, name, int(block)) for block in parts[name]):
                assert limits.queries % 128 == limits.keys % 128 == 0 < limits.parts


def test_three_warpgroups_of_hopper_work_at_tiles_of_192_queries_for_heads_of_64():
    assert [ForwardSizes.of(HOPPER, rows, 128, 64).q for rows in (192, 384, 128)] == [192, 192, 128]
    assert [ForwardSizes.of(HOPPER, rows, 128, 128).q for rows in (192, 384)] == [64, 128]
    for size, tiles in ((64, {64, 192}), (128, {64})):
        assert {sizes.q for sizes in ForwardSizes.possible(192, 128, size)} == tiles


def test_the_cheapest_choice_is_written_beside_the_others(tmp_path):
    """Costs of one pass and block are compared with each other only."""
    steps = [Limits(512, keys, 1) for keys in (512, 1024, 2048)]
    costs = {"128": (2.0, 1.0, 1.5), "256": (0.5, 0.6, 0.7)}
    rows = [
        ("forward", block, x, c)
        for block in costs
        for x, c in zip(steps, costs[block], strict=True)
    ]
    found = tune.chosen(rows)
    assert found == {"forward": {"128": steps[1]._asdict(), "256": steps[0]._asdict()}}
    file = tmp_path / "mine.json"
    tables.write(file, "pallas_tpu", "v9", found)
    written = json.loads(file.read_text())
    (*_, newest) = PACKAGED["pallas_tpu"].values()
    mine = written["pallas_tpu"].pop("v9")
    assert mine.pop("forward") == newest["forward"] | found["forward"]
    assert mine == {name: x for name, x in newest.items() if name != "forward"}
    assert written == PACKAGED


def test_a_step_costs_its_instructions_or_products_and_what_it_computes_in_vain(monkeypatch):
    choices = tune.tpu_choices(128)
    assert [x.keys * x.parts for x in choices] == [512, 1024, 2048, 1024, 2048, 4096]

    def loops(chip, block, choices):
        flops = 2 * 2 * block * 128
        ideal = (flops * x.keys * x.parts / schedule.FLOPS_PER_CYCLE[chip] for x in choices)
        slower = (4, 2, 1, 0.5, 0.5, 1)
        steps = [round(cycles * x) for cycles, x in zip(ideal, slower, strict=True)]
        return [{"forward": schedule.Loop(step, 0)} for step in steps]

    monkeypatch.setattr(schedule, "loops", loops)
    costs = np.array([cost for *_, cost in tune.tpu("v5e", (128,))])
    in_vain = 1 + (np.array([512, 1024, 2048, 1024, 2048, 4096]) - 128) / 2 / 8192
    expected = np.array([4, 2, 1, 1, 1, 1]) * in_vain
    np.testing.assert_allclose(costs / costs[2], expected / expected[2], rtol=0.01)


def test_a_choice_costs_the_least_of_two_rounds(monkeypatch):
    """All are called in one round before the next, for a device slows down as it warms."""
    called, times = [], iter((3.0, 1.0, 2.0, 5.0))

    def seconds(call, *inputs):
        called.append(float(call(*inputs)[0]))
        return next(times)

    monkeypatch.setattr(tune, "seconds", seconds)
    calls = {
        factor: functools.partial(lambda x, by, to: by * x + to, by=factor) for factor in (2, 3)
    }
    found = dict(tune.timed(calls, jax.numpy.ones(2), to=jax.numpy.ones(2)))
    assert called == [3, 4, 3, 4]
    assert found == {2: 2.0, 3: 1.0}


def test_the_tuner_refuses_a_device_without_choices(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tune"])
    monkeypatch.setattr(MosaicGPU, "refusal_of_device", lambda _: "it is a toaster")
    with pytest.raises(SystemExit):
        tune.main()
    assert "it is a toaster; --chips names TPUs" in capsys.readouterr().err
