"""Step caches in whole runs: exact where they never reuse, recorded where they do."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest

import jvdm
import jvdm.choices
from configs.systems import magcache
from jvdm.attention.patterns import fingerprint
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


def test_sizes_of_other_weights_are_refused(pipe, weights):
    asked, sizes = Request(prompt=PROMPT), {"levels": "(0.0, 1.0)", "sizes": "(1.0, 1.5)"}
    mine = with_cache(pipe, cache="mag", **sizes, weights=fingerprint(pipe.identity))
    assert mine.prepare(asked).system.sampling.cache.weights
    others = (
        with_cache(pipe, cache="mag", **sizes, weights="0123abcd"),
        jvdm.load(weights, system="magcache", progress=False),
    )
    for other in others:
        with pytest.raises(jvdm.ConfigError, match="a MagCache of other weights; it is of"):
            other.prepare(asked)


def test_the_system_has_the_sizes_of_the_weights_that_ship():
    shipped = fingerprint(digests(EMBEDDED / "tiny_t2v"))
    assert magcache.TINY_T2V.weights == shipped, "python -m tests.systems.step_caches calibrate"
