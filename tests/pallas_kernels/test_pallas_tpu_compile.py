"""The kernels for TPUs, compiled without one: memory, static schedule."""

import importlib.util

import pytest

from pallas_kernels.attention.pallas_tpu import WORKING, schedule

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not importlib.util.find_spec("libtpu"), reason="needs the wheel libtpu (pip install libtpu)"
    ),
]
HELD = 2 * 75_776 * 128 * 2  # bytes of keys and values of a head
BUSY = 0.8  # of the time of an inner loop, its matrix products


@pytest.fixture(autouse=True)
def libtpu_beside_other_processes(monkeypatch):
    for name, value in schedule.ALONE.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("chip", schedule.TOPOLOGIES)
@pytest.mark.parametrize(("heads", "length", "places"), [(12, 32_768, True), (40, 75_776, False)])
def test_long_videos_compile_for_every_chip(chip, heads, length, places):
    mask = schedule.mask_like(heads, length, 128, 64, places=places)
    used = schedule.vector_memory(schedule.compiled(chip, mask, heads))
    held = 0 if chip == "v4" else HELD * length // 75_776
    assert held <= used["forward"] <= held + WORKING


@pytest.mark.parametrize("chip", ["v4", "v5e"])
def test_gradients_compile(chip):
    mask = schedule.mask_like(2, 8192, 128, 32, places=True)
    used = schedule.vector_memory(schedule.compiled(chip, mask, 2, backward=True))
    held = 0 if chip == "v4" else HELD * 8192 // 75_776
    assert set(used) == set(schedule.PASSES)
    assert all(size <= held + WORKING for size in used.values())


@pytest.mark.parametrize("chip", ["v5e", "v5p"])
def test_the_matrix_unit_is_busy(chip):
    (loops,) = schedule.loops(chip, 128)
    if not loops:
        pytest.skip("this libtpu writes no *final_bundles.txt: its schedule cannot be read")
    for name, loop in loops.items():
        assert BUSY <= schedule.busy(chip, 128, name, loop) <= 1.2, (name, loop)
        assert loop.masked <= 1.15 * loop.plain
