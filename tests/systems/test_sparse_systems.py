"""Sparse attention from the command line, from Python and as systems; and what is recorded."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

import jvdm
import jvdm.choices
import jvdm.pipeline
from jvdm import cli
from jvdm import policies as measured
from jvdm.attention import Draft, Window
from jvdm.models import stand_in
from pallas_kernels.attention.shapes import SHAPES, Shape
from tests.systems import kept_clusters, skipped_blocks
from tests.systems.test_systems import PROMPT, latents_of

SIZE: Any = {"height": 32, "width": 64}  # 2 x 4 tokens in each of three frames
pytestmark = pytest.mark.filterwarnings("ignore:height x width")


@pytest.mark.slow
def test_clusters_that_are_kept_are_measured_as_docs_say(monkeypatch, capsys):
    monkeypatch.setitem(SHAPES, "toy", Shape((2, 6, 8), 2, 16, 2))
    monkeypatch.setattr(stand_in, "TEXT", (3, 8))
    times = iter([3.0, 3.0, 1.6, 1.0, 2.0, 2.0, 0.5, 0.5])
    monkeypatch.setattr(kept_clusters, "seconds", lambda *_: next(times))
    monkeypatch.setattr(kept_clusters.bench.bench, "seconds", lambda *_, **__: next(times))
    kept_clusters.times("toy", 0.5)
    searches, keeps = (line.split() for line in capsys.readouterr().out.splitlines())
    assert searches[:2] == ["searches", "3.0"] and float(searches[2]) == pytest.approx(0.6 / 1.4)
    assert keeps == ["keeps", "2.0", "0.0"]


@pytest.mark.slow
def test_skips_of_published_sizes_are_fitted_to_what_is_timed(monkeypatch, capsys):
    monkeypatch.setitem(SHAPES, "toy", Shape((3, 8, 16), 2, 64, 2))
    monkeypatch.setattr(stand_in, "TEXT", (3, 8))
    skipped_blocks.times("toy", (0.9, 0.6))
    fit, *rows = capsys.readouterr().out.splitlines()
    assert fit.startswith("fit (") and len(rows) == 3
    asked, density = (float(x) for x in rows[2].split()[2:4])
    assert asked == 0.6 and 0.5 <= density < float(rows[1].split()[3]) < 1


@pytest.fixture(scope="module")
def loaded(weights):
    return lambda system=None, **options: jvdm.load(
        weights, system=system, progress=False, **options
    )


def test_the_systems_are_their_policies(loaded):
    assert loaded("draft_attention").system.sampling.policy == Draft(0.25)
    window = loaded("window_attention").system.sampling.policy
    assert window == Window(0.25, dense_rows=0.25, dense_layers=1)


def test_attention_is_a_setting_of_a_call(loaded, pipe):
    sparse = latents_of(pipe, attention="draft", density=0.25, **SIZE)
    assert np.array_equal(latents_of(loaded("draft_attention"), **SIZE), sparse)
    assert not np.allclose(latents_of(pipe, **SIZE), sparse)
    dense = latents_of(pipe, attention="draft", density=1.0, **SIZE)
    assert np.array_equal(latents_of(pipe, **SIZE), dense)


def test_a_policy_that_the_system_has_keeps_its_fields(pipe):
    own = {"policy": "draft", "policy.dense_layers": 0}
    kept = dataclasses.replace(pipe, system=jvdm.choices.choose(pipe.system, own))
    job = kept.prepare(jvdm.pipeline.Request(prompt=PROMPT, attention="draft", density=0.5))
    assert job.system.sampling.policy == Draft(0.5, dense_layers=0)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"density": 0.25}, "density is 0.25; the attention of this system has no density.*draft"),
        ({"attention": "draft", "density": 1.5}, "density is 1.5; it is a share"),
        ({"attention": "draft", "density": 0.0}, "density is 0.0; it must be a positive number"),
        ({"attention": "draft", "density": 0.01}, "less than one of 24 blocks of 1 tokens"),
        (
            {"attention": "sparse"},
            "attention is 'sparse' .*dense or frame_causal or cached_causal or draft",
        ),
        ({"attention": "frame_causal", "density": 0.5}, "has no density"),
    ],
)
def test_what_no_policy_can_be_is_refused(pipe, asked, message):
    with pytest.raises(jvdm.ConfigError, match=message):
        latents_of(pipe, **SIZE, **asked)


def test_the_record_says_what_was_done_and_makes_it_again(weights, tmp_path, capsys):
    options = ["--weights", str(weights), "--seed", "3", "--height", "32", "--width", "64"]
    options += ["--attention", "draft", "--density", "0.25"]
    first, second = tmp_path / "a.mp4", tmp_path / "b.mp4"
    assert cli.main(["generate", PROMPT, *options, "--output", str(first)]) == 0
    record = json.loads(first.with_suffix(".json").read_text())
    assert record["settings"]["attention"] == "draft" and record["settings"]["density"] == 0.25
    done = record["attention"]
    # three rows, of which the first is dense, and two layers, of which the first is dense
    assert done["dense_share"] == pytest.approx(2 / 3, abs=1e-3)
    assert done["density"] == pytest.approx(2 / 3 + 0.25 / 3, abs=1e-3)
    assert 0.25 < done["layers"]["recall"][1] < 1 and done["layers"]["recall"][0] == 1
    again = ["generate", "--like", str(first.with_suffix(".json")), "--output", str(second)]
    assert cli.main(again) == 0
    other = json.loads(second.with_suffix(".json").read_text())
    assert other["sha256"]["latents"] == record["sha256"]["latents"]
    assert other["attention"] == done


def test_policies_are_measured_beside_dense(weights, tmp_path):
    options = measured.PoliciesOptions(
        str(weights), ("draft", "random"), (1.0, 0.25), prompts=(PROMPT,), output=tmp_path, **SIZE
    )
    result = measured.run(options)
    dense, same, _, draft, chance = result["rows"]
    assert dense["psnr"] == same["psnr"] == 100 and same["density"] == 1
    assert draft["psnr"] < 100 and draft["density"] == chance["density"] < 1
    assert draft["recall"] > chance["recall"]
    assert "recall per layer, draft 0.25: 1.00" in measured.text(result)
    with pytest.raises(jvdm.ConfigError, match="a sparse policy called 'dense'"):
        measured.run(dataclasses.replace(options, policies=("dense",)))
