"""Step caches in whole runs: exact where they never reuse, recorded where they do."""

import dataclasses
import itertools
import json
from typing import Any

import numpy as np
import pytest

import jvdm
import jvdm.choices
from configs.systems import magcache
from jvdm import cli
from jvdm.attention.calibration import fingerprint
from jvdm.models.step_cache import CACHES
from jvdm.pipeline import Request
from jvdm.samplers import Heun
from jvdm.weights.folder import EMBEDDED, digests
from tests.systems.test_systems import PROMPT, latents_of


def with_cache(pipe: Any, **choices: Any) -> Any:
    named = {"cache" if key == "cache" else f"cache.{key}": x for key, x in choices.items()}
    system = jvdm.choices.choose(pipe.system, named)
    return dataclasses.replace(pipe, system=system)


@pytest.mark.parametrize(
    "choices",
    [
        {"cache": "every", "longest": 0},
        {"cache": "tea", "threshold": 0.0},
        {"cache": "first_block", "threshold": 0.0},
    ],
    ids=lambda choices: choices["cache"],
)
def test_a_cache_that_never_reuses_changes_nothing(pipe, choices):
    made = pipe(PROMPT, seed=3)
    again = with_cache(pipe, **choices)(PROMPT, seed=3)
    assert np.array_equal(again.frames, made.frames)
    steps = made.record["settings"]["num_inference_steps"]
    assert again.record["cache"] == {"calls": steps, "computed": steps}
    assert made.record["cache"] == {}


def test_a_run_that_reuses_is_another_and_says_so(pipe):
    """With two evaluations a row, sparse attention, and a guidance that asks one by one."""
    plain = latents_of(pipe)
    cached = with_cache(pipe, cache="every")
    assert not np.allclose(latents_of(cached), plain)
    made = cached(PROMPT, seed=3)
    steps = made.record["settings"]["num_inference_steps"]
    assert made.record["cache"] == {"calls": steps, "computed": (steps + 1) // 2}
    assert made.record["system"]["sampling"]["cache"]["class"].endswith("StepCache")
    rules = dataclasses.replace(cached.system.sampling, solver=Heun())
    heun = dataclasses.replace(cached, system=dataclasses.replace(cached.system, sampling=rules))
    did = heun(PROMPT, seed=3).record["cache"]
    assert (
        did["calls"] > 1.5 * steps and did["calls"] - 1 <= 2 * did["computed"] <= did["calls"] + 2
    )


def test_a_chunk_of_a_stream_computes_before_it_reuses(weights):
    """What entered the buffer has no change that could be reused."""

    def chunks(**choices: Any) -> np.ndarray:
        pipe = jvdm.load(weights, system="fvdm", sampling=choices or None, progress=False)
        return np.concatenate(list(itertools.islice(pipe.stream(PROMPT, seed=3), 2)))

    never = chunks(**{"cache": "every", "cache.longest": 0})
    assert np.array_equal(never, chunks())
    always = chunks(**{"cache": "every", "cache.longest": 99, "cache.above": 2.0})
    assert not np.array_equal(always, never)


def test_every_cache_has_a_name_on_the_command_line(pipe):
    for name, cache in CACHES.items():
        assert jvdm.choices.choose(pipe.system, {"cache": name}).sampling.cache == cache


def test_what_is_calibrated_is_refused_for_other_weights(pipe, weights):
    asked, sizes = Request(prompt=PROMPT), {"levels": "(0.0, 1.0)", "sizes": "(1.0, 1.5)"}
    mine, fitted = fingerprint(pipe.identity), {"coefficients": "(2.0, 0.0)"}
    for rules in ({"cache": "mag", **sizes}, {"cache": "tea", **fitted}):
        rule = with_cache(pipe, **rules, weights=mine).prepare(asked).system.sampling.cache
        assert rule.weights == mine
        other = with_cache(pipe, **rules, weights="0123abcd")
        message = "Cache of other weights; it is of 0123abcd.*--search step_cache.*cache every"
        with pytest.raises(jvdm.ConfigError, match=message):
            other.prepare(asked)
    with pytest.raises(jvdm.ConfigError, match="a MagCache of other weights"):
        jvdm.load(weights, system="magcache", progress=False).prepare(asked)


def test_the_system_has_the_sizes_of_the_weights_that_ship():
    for name, cache in (("tiny_t2v", magcache.TINY_T2V), ("nano", magcache.NANO)):
        told = f"jvdm attention --weights {name} --search step_cache"
        assert cache.weights == fingerprint(digests(EMBEDDED / name)), told
    shipped = jvdm.load("nano", system="magcache", progress=False)
    assert shipped.prepare(Request(prompt=PROMPT)).system.sampling.cache == magcache.NANO


def test_caches_are_calibrated_and_used(pipe, weights, tmp_path, capsys):
    """What the command prints is what the caches then look at, without a row that reuses."""
    search = ["attention", "--weights", str(weights), "--search", "step_cache", "--height", "16"]
    search += ["--width", "32", "--output", str(tmp_path), "--prompts", PROMPT, "--seed", "3"]
    assert cli.main([*search, "--num-inference-steps", "8"]) == 0
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "step_cache.json").read_text())
    levels, sizes, moved = (np.asarray(found[name]) for name in ("levels", "sizes", "moved"))
    assert (np.diff(levels) > 0).all() and levels[-1] == 1 and moved.shape == (7, 2)
    mine = fingerprint(pipe.identity)
    for rule in ("mag", "tea"):
        lines = shown.partition(f"--sampling.cache {rule}\n")[2].splitlines()[:3]
        given = dict(line.split() for line in lines)
        asked = {name.removeprefix("--sampling.cache."): value for name, value in given.items()}
        assert asked["weights"] == mine
        asked |= {"threshold": 0.0, "above": 2.0}
        run = with_cache(pipe, cache=rule, **asked)
        run, kept = with_run(run), []
        for _ in range(8):
            run = (run[0], run[0].advance(run[1], 1))
            kept.append(np.array(run[1].state.carry.reused.change[0]))
        means = [np.abs(change).mean() for change in kept]
        np.testing.assert_allclose(np.log(means)[::-1], sizes, atol=1e-3)
        moves = [
            np.mean(np.abs(new - old).mean((2, 3)) / np.abs(old).mean((2, 3)))
            for old, new in itertools.pairwise(kept)
        ]
        np.testing.assert_allclose(moves, moved[:, 1], atol=1e-3)
    x = np.linspace(moved[:, 0].min(), moved[:, 0].max(), 5)
    near = np.polyval(found["coefficients"], x)
    assert (near > 0.3 * moved[:, 1].min()).all() and (near < 3 * moved[:, 1].max()).all()
    assert found["fitted"] >= moved[:, 0].max()
    assert cli.main([*search, "--num-inference-steps", "5"]) == 2
    assert "5 rows; a polynomial of degree 4" in capsys.readouterr().err


def with_run(pipe: Any) -> tuple[Any, Any]:
    return pipe, pipe.start(pipe.prepare(Request(prompt=PROMPT, seed=3, num_inference_steps=8)))
