"""The published systems: every docstring has all parts, and what is computed is true."""

import dataclasses
import importlib
import json
import shlex

import numpy as np
import pytest

import jvdm
from jvdm import cli, flags, methods
from jvdm.pipeline import Pipeline, loading
from jvdm.recipes import SYSTEMS, shipped
from tests.architecture.source import ROOT

NAMES = shipped(SYSTEMS)
FIRST, LAST = "<!-- made by: jvdm methods --table -->\n", "\n<!-- end of the table -->"


@pytest.fixture(scope="module")
def table():
    return methods.run(methods.MethodsOptions(table=True))


@pytest.fixture(scope="module")
def trials():
    folder, files = loading.place_of("nano")
    manifest = loading.manifest_of(folder, (), False, files)
    return methods.Trials(Pipeline(loading.system_of(manifest), {}, manifest))


def with_table(readme, table):
    """Returns the README with the table between its marks."""
    before, first, rest = readme.partition(FIRST)
    _, last, after = rest.partition(LAST)
    assert first and last
    return "".join((before, first, methods.text(table), last, after))


def found(table, name):
    return next(method for method in table["methods"] if method["name"] == name)


@pytest.mark.parametrize("name", NAMES)
def test_every_system_has_all_parts_and_a_command_that_is_one(name):
    told = methods.read(name, methods._module(name).__doc__ or "")
    assert all(dataclasses.asdict(told).values())
    assert f"arXiv:{told.arxiv}" in told.paper and len(told.summary) < 100
    for command in told.commands:
        _, verb, *arguments = shlex.split(command)
        known = cli.VERBS[verb]
        parsed = flags.parse(verb, known, importlib.import_module(known.module), arguments)
        if verb == "generate":
            assert parsed.options.system == name


@pytest.mark.parametrize(
    ("old", "message"),
    [
        ("Wave: ", "no title|no summary"),
        ("jvdm generate", "no commands"),
        ("Paper: ", "no paper"),
        ("arXiv:2503.07418", "no paper with an arXiv id"),
        ("Claim: ", "no claim"),
        ("Ours: ", "no ours"),
        ("Gain: ", "no gain"),
    ],
)
def test_a_docstring_without_a_part_is_refused_by_name(old, message):
    text = (
        "Wave: it waves.\n\njvdm generate x --system wave\n\nPaper: Waves,\narXiv:2503.07418.\n"
        "Claim: c.\nOurs: o\ngoes on.\nGain: none.\n\nFree text.\n"
    )
    told = methods.read("wave", text)
    assert (told.paper, told.ours) == ("Waves, arXiv:2503.07418.", "o goes on.")
    assert told.gain == "none."
    with pytest.raises(jvdm.ConfigError, match=message):
        methods.read("wave", text.replace(old, "", 1))


def test_the_table_of_the_readme_is_that_of_the_command(table):
    readme = (ROOT / "README.md").read_text()
    assert readme == with_table(readme, table), "run python -m tests.cli.test_methods"


def test_needs_are_found_by_preparing_runs(table):
    needs = {method["name"]: method["needs"] for method in table["methods"]}
    assert needs["image_to_video"] == ["a first picture"]
    assert needs["interpolation"] == ["a first picture", "a last picture"]
    assert needs["sdedit"] == ["a video"]
    for name in ("anyflow", "arlon", "art_v", "dydit", "vin"):
        assert needs[name] == [f"weights of configs/{name}.py"]
    assert "a cache of keys and values" in needs["ar_diffusion"] and not needs["wave"]
    made = {method["name"]: (method["clips"], method["streams"]) for method in table["methods"]}
    assert made["infinity_rope"] == (False, True) and made["sdedit"] == (True, False)
    assert made["ar_diffusion"] == made["wave"] == made["dydit"] == (True, True)


def test_parts_are_those_that_a_system_changes(table):
    assert found(table, "wave")["parts"] == {"matrix": "LagMatrix"}
    assert found(table, "fifo")["parts"] == {"matrix": "WindowedMatrix", "tiles": "Tiles"}
    assert found(table, "dydit")["parts"] == {"model": "VideoDiT"}


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("wave", "image_to_video", True),  # the given column is around the wave
        ("draft_attention", "wave", True),
        ("draft_attention", "window_attention", False),  # one policy replaces the other
        ("wave", "fvdm", False),  # one matrix replaces the other
        ("streamdit", "draft_attention", False),
        ("dydit", "wave", True),  # on the network that its recipe trains
        ("anyflow", "dydit", False),  # each needs a network of its own
        ("art_v", "cfg_cache", True),
        ("dydit", "ras", False),  # frames are left out by the mean of tokens that were not run
    ],
)
def test_systems_combine_if_both_are_kept(trials, one, other, expected):
    assert trials.combine(one, other) is trials.combine(other, one) is expected


def test_a_machine_that_is_too_small_is_no_answer(trials, monkeypatch):
    def lacking(*given):
        raise jvdm.DeviceMemoryError("the memory is too small", "it needs 9 GB", "free some")

    monkeypatch.setattr(Pipeline, "prepare", lacking)
    with pytest.raises(jvdm.DeviceMemoryError):
        trials.clips(trials.pipe.system, {})


@pytest.mark.slow
def test_a_combination_keeps_the_given_frame_and_waves(trials):
    wave, given = (trials.functions[name] for name in ("wave", "image_to_video"))
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    asked = {"image": picture, "seed": 0, "num_inference_steps": 3, "output_type": "latent"}
    latents = []
    for system in (given, lambda base: given(wave(base))):
        pipe = jvdm.load("nano", system=system, progress=False)
        latents.append(np.asarray(pipe(methods.PROMPT, progress=False, **asked)))
    alone, both = latents
    np.testing.assert_array_equal(alone[:, 0], both[:, 0])
    assert not np.allclose(alone[:, 1:], both[:, 1:])


def test_the_command_says_all_one_or_which_is_meant(capsys, monkeypatch):
    assert cli.main(["methods"]) == 0
    out = capsys.readouterr().out
    assert all(f"{name} " in out for name in NAMES)
    monkeypatch.setattr(methods, "shipped", lambda package: ["sdedit", "wave", "fvdm"])
    assert cli.main(["methods", "sdedit", "--weights", "nano", "--json"]) == 0
    (method,) = json.loads(capsys.readouterr().out)["methods"]
    assert method["arxiv"] == "2108.01073" and "wave" in method["combines_with"]
    assert cli.main(["methods", "wavy"]) == 2
    assert "did you mean wave" in capsys.readouterr().err


if __name__ == "__main__":
    path = ROOT / "README.md"
    made = methods.run(methods.MethodsOptions(table=True))
    path.write_text(with_table(path.read_text(), made))
