"""What a run will need is known before anything is allocated, and is what XLA says later."""

import dataclasses
import math
import re
from typing import Any

import jax
import numpy as np
import pytest

from jvdm import cli, evaluate, machine, pricing, samplers
from jvdm.attention import CachedCausal
from jvdm.errors import ConfigError, DeviceMemoryError
from jvdm.pipeline import Pipeline, Request, programs
from jvdm.pipeline.request import prepare
from jvdm.pricing import Size, largest_that_fits, price
from jvdm.samplers import AutoregressiveMatrix, CachedMatrix, Heun
from tests.generate import nano
from tests.generate.nano import MANIFEST, SYSTEM

GB = 10**9
SIZE = Size(1, 9, 16, 32)


def matrix_of(size, steps=3):
    return samplers.synchronous(samplers.linspace_levels(steps), (size.num_frames + 3) // 4)


def price_of(size=SIZE, system=SYSTEM, steps=3):
    return price(system, size, matrix_of(size, steps))


def sampling(**rules):
    return dataclasses.replace(SYSTEM, sampling=dataclasses.replace(SYSTEM.sampling, **rules))


@pytest.fixture
def memory(monkeypatch):
    """Says how much memory is free."""

    def say(count):
        monkeypatch.setattr(pricing, "free_memory", lambda: count)
        monkeypatch.setattr(pricing, "free_device_memory", lambda _: count)

    say(24 * GB)
    return say


@pytest.fixture(scope="module")
def pipe():
    """The small model with any parameters."""
    return Pipeline(SYSTEM, nano.drawn(SYSTEM.init, jax.random.key(0)), MANIFEST)


def cached(frames, sink=0, system=SYSTEM, **rules):
    """The small system with a cache of so many latent frames."""
    rules |= {"matrix": CachedMatrix(AutoregressiveMatrix(), lookback=min(frames, 9))}
    rules |= {"policy": CachedCausal(frames=frames, sink=sink)}
    return dataclasses.replace(system, sampling=dataclasses.replace(system.sampling, **rules))


@pytest.mark.parametrize(
    ("size", "frames"),
    [(Size(1, 9, 192, 192), 0), (Size(6, 9, 96, 96), 0), (Size(1, 17, 160, 96), 0)]
    + [(Size(1, 9, 64, 64), 200)],
)
@pytest.mark.filterwarnings("ignore")
def test_the_bytes_of_a_run_are_those_that_xla_takes(pipe, size, frames):
    if frames:
        pipe = dataclasses.replace(pipe, system=cached(frames))
    videos, num_frames, height, width = size
    sizes = {"height": height, "width": width, "num_frames": num_frames, "num_videos": videos}
    run = pipe.start(pipe.prepare(Request(prompt="a ball", seed=0, **sizes)))
    kept = sum(x.nbytes for x in jax.tree.leaves(run.state.carry))
    arguments = (pipe._rows(run)[0], *pipe._fixed(run), run.state, np.int32(0))
    compiled = programs.denoise_row.lower(*arguments, mesh=None).compile()
    analysis: Any = compiled.memory_analysis()
    taken = analysis.temp_size_in_bytes + kept
    found = price(pipe.system, size, run.job.matrix)
    assert 0.8 < found.on_device() / taken < 1.25
    assert found.cache_bytes == kept


@pytest.mark.parametrize(
    ("dtype", "sink", "execution"), [("float32", 0, "batched"), ("bfloat16", 2, "sequential")]
)
def test_a_cache_costs_what_its_arrays_do(dtype, sink, execution):
    """Keys and values of all layers, heads, branches and frames of two videos."""
    rule = samplers.ClassifierFree(2.0, execution=execution)
    system = cached(5, sink, SYSTEM.with_dtype(dtype), guidance=rule)
    arrays = jax.tree.leaves(system.start((2, 3, 4, 8, 4), 1))
    matrix = system.sampling.matrix(samplers.linspace_levels(3), 3)
    found = price(system, Size(2, 9, 32, 64), matrix)
    assert found.cache_bytes == sum(x.nbytes for x in arrays)
    large = sum(x.nbytes for x in arrays if x.ndim > 4)
    # keys and values, two layers, two branches of two videos, 2 x 4 tokens of two heads of 16
    assert large == 2 * 2 * 4 * 5 * (2 * 4 * 2 * 16) * {"float32": 4, "bfloat16": 2}[dtype]
    assert 0 <= found.cache_bytes - large < 500
    # every device has the whole cache: the carry is not split
    assert found.on_device(2) - found.split_bytes // 2 == found.cache_bytes


def test_packed_frames_cost_as_many_tokens_as_they_have_patches():
    """Two layers, two branches of two videos, 3 frames of 1 x 2 patches, and which they are."""
    plain = cached(5)
    policy = CachedCausal(frames=5, packed=(3,), patches=(2,))
    sampling = dataclasses.replace(plain.sampling, policy=policy)
    matrix = plain.sampling.matrix(samplers.linspace_levels(3), 3)
    more, less = (
        price(system, Size(2, 9, 32, 64), matrix).cache_bytes
        for system in (dataclasses.replace(plain, sampling=sampling), plain)
    )
    assert more - less == 2 * 2 * 4 * 3 * (1 * 2 * 2 * 16) * 4 + 2 * 3 * 4


def test_a_cache_that_does_not_fit_is_refused_with_one_that_does(memory):
    system = cached(6, sink=1)
    matrix = system.sampling.matrix(samplers.linspace_levels(3), 3)
    memory(price(cached(4, sink=1), SIZE, matrix).on_device())
    with pytest.raises(DeviceMemoryError, match="cache of 6 latent frames; .* has .* kB") as it:
        pricing.check(system, SIZE, matrix)
    assert it.value.fix == "keep 4: --sampling.policy.frames 4 --sampling.matrix.lookback 4"
    with pytest.raises(DeviceMemoryError) as it:  # too large without a cache
        pricing.check(system, SIZE._replace(num_frames=80_001), matrix)
    assert it.value.fix == "use fewer frames"


def test_a_stream_that_does_not_fit_is_refused(memory):
    """It holds its window, its cache and what the autoencoder remembers, once more than a clip."""
    system, matrix = cached(2), matrix_of(SIZE)
    clip, held = price(system, SIZE, matrix).on_device(), pricing.held(system, SIZE)
    assert held.cache == price(system, SIZE, matrix).cache_bytes
    memory(clip + sum(held))
    assert pricing.check_stream(system, SIZE, matrix) == held
    memory(clip + sum(held) - 1)
    with pytest.raises(DeviceMemoryError, match="with a cache of 2 latent frames.*keep 1: "):
        pricing.check_stream(system, SIZE, matrix)


def test_rules_that_change_no_decoder_trace_none():
    traced = []

    def note(event, duration_secs, **about):
        if event.endswith("jaxpr_trace_duration"):
            traced.append(about["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        first, second = (pricing.held(cached(frames), Size(1, 21, 16, 32)) for frames in (3, 4))
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert traced.count("decode") == 1 and traced.count("start") == 2
    assert first.decoder == second.decoder > 0 and first.cache < second.cache


def test_operations_follow_rows_videos_branches_and_evaluations():
    one = price_of()
    assert one.rows == 3
    assert price_of(steps=6).operations == 2 * one.operations
    assert price_of(SIZE._replace(videos=5)).operations == 5 * one.operations
    plain = price_of(system=sampling(guidance=samplers.Unguided()))
    assert plain.operations == one.operations / 2
    assert price_of(system=sampling(solver=Heun())).operations == 2 * one.operations
    held = samplers.truncate(matrix_of(SIZE), 2)  # rows in which nothing moves cost nothing
    assert price(SYSTEM, SIZE, held).operations == one.operations / 3


@pytest.mark.parametrize(
    "values",
    [
        {"height": 16384, "width": 16384},
        {"height": 1_600_000_000},
        {"width": 16 * 10**40},
        {"num_videos": 10**12},
        {"num_videos": 100_000, "height": 128, "width": 128},
        {"num_frames": 4 * 10**6 + 1, "height": 128, "width": 128},
    ],
)
def test_what_no_device_holds_is_refused_with_the_largest_that_fits(memory, values):
    with pytest.raises(DeviceMemoryError, match=r"about .* are needed; .* has 24 GB free; ") as it:
        prepare(Request(prompt="a", seed=0, **values), SYSTEM, MANIFEST)
    assert it.value.fix.startswith("use fewer frames" if "num_frames" in values else "the largest")


def test_the_largest_that_fits_fits_and_the_next_does_not(memory):
    memory(GB // 50)

    def fits(size):
        try:
            pricing.check(SYSTEM, size, matrix_of(size))
        except DeviceMemoryError:
            return False
        return True

    many = largest_that_fits(Size(256, 9, 64, 64), (16, 16), fits)
    assert many is not None and many.videos > 1 and many[1:] == (9, 64, 64)
    assert fits(many) and not fits(many._replace(videos=many.videos + 1))
    large = largest_that_fits(Size(2, 9, 256, 512), (16, 16), fits)
    assert large is not None and large.videos == 1 and large.width > 1.5 * large.height
    assert fits(large) and not fits(
        large._replace(height=large.height + 32, width=large.width + 32)
    )
    assert largest_that_fits(Size(2, 9, 64, 64), (16, 16), lambda size: False) is None


def test_devices_share_the_videos(memory, monkeypatch):
    size = Size(64, 9, 96, 96)
    whole, half = price_of(size).on_device(), price_of(size).on_device(2)
    assert half == pytest.approx(whole / 2, rel=0.01)
    monkeypatch.setattr(pricing, "free_device_memory", lambda _: half)
    pricing.check(SYSTEM, size, matrix_of(size), devices=2)
    with pytest.raises(DeviceMemoryError, match="fits: 3[12] videos of 9 frames"):
        pricing.check(SYSTEM, size, matrix_of(size), devices=1)


def test_where_the_memory_is_unknown_nothing_is_refused(memory):
    memory(None)
    size = Size(100, 9, 1024, 1024)
    pricing.check(SYSTEM, size, matrix_of(size))


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(59, ()), (600, "about 10 minutes: 3 rows of .* operations"), (1e6, "about 11.6 days")],
)
def test_more_than_a_minute_is_said_before(memory, monkeypatch, seconds, said):
    speed = price_of().operations / pricing.SHARE_OF_PEAK / seconds
    monkeypatch.setattr(pricing, "_speed", lambda platform: speed)
    assert pricing.check(SYSTEM, SIZE, matrix_of(SIZE)) == ()  # too little to be worth measuring
    monkeypatch.setattr(pricing, "UNPRICED_OPERATIONS", 0)
    notes = pricing.check(SYSTEM, SIZE, matrix_of(SIZE))
    assert notes == said or re.search(f"denoising will take {said}", notes[0])


def test_the_speed_of_this_device_is_measured():
    assert 1e8 < pricing._speed("cpu") < 1e15


def test_the_same_structure_is_traced_once(memory):
    price_of()
    before = pricing._row.cache_info().misses
    price_of(steps=9)
    price_of(system=sampling(guidance=samplers.ClassifierFree(7.5)))
    assert pricing._row.cache_info().misses == before


def test_sizes_and_times_are_for_people():
    assert [pricing.amount(n) for n in (0, 999, 53.2e9, 1.14e16, 3e24)] == [
        "0 B", "999 B", "53.2 GB", "11.4 PB", "3e+09 PB"
    ]  # fmt: skip
    assert [pricing._duration(n) for n in (61, 7200, 1e6, 1e8)] == [
        "1.02 minutes", "2 hours", "11.6 days", "3.17 years"
    ]  # fmt: skip


def test_a_container_may_leave_less_than_the_machine(monkeypatch, tmp_path):
    whole = machine.free_memory()
    assert whole is not None and whole > 10**8
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    assert machine.free_memory() == 3000
    (tmp_path / "memory.max").write_text("max\n")
    assert math.isclose(machine.free_memory() or 0, whole, rel_tol=0.5)


def test_a_limit_on_the_process_leaves_less_too(run_python):
    code = "import resource; resource.setrlimit(resource.RLIMIT_AS, (10**9, 10**9))\n"
    done = run_python("-c", f"{code}from jvdm.machine import free_memory; print(free_memory())")
    assert 5e8 < int(done.stdout) < 1e9  # a bare Python takes some


def test_the_command_refuses_before_it_writes(memory, tmp_path, capsys):
    weights, out = tmp_path / "weights", tmp_path / "out"
    weights.mkdir()
    nano.write_weights(weights)
    arguments = ["generate", "a ball", "--weights", str(weights), "--output", str(out)]
    assert cli.main([*arguments, "--num-videos", "1000000000"]) == 2
    assert "1,000,000,000 videos of 9 frames of 16x32: about" in capsys.readouterr().err
    assert not list(out.iterdir())
    with pytest.raises(ConfigError, match="2,000,000 prompts per set"):
        evaluate.run(evaluate.EvaluateOptions(num_prompts=2_000_000, batch_size=1))
