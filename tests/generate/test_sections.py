"""Prompts of sections: each frame of a clip reads its own, and a stream is told them in time."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvdm
from jvdm import cli, flags
from jvdm.models import Conditions, TextStates
from jvdm.models.conditions import in_sections
from jvdm.models.ltx import LTXDiT
from jvdm.models.wan import WanDiT
from jvdm.pipeline import Request, streaming
from jvdm.samplers import Call
from tests.generate.nano import DIT, drawn

PROMPT, OTHER = "a large red ball rolls to the left", "a small blue box rests"
ASKED = {"seed": 0, "num_frames": 17, "progress": False, "output_type": "latent"}
SIZES: Any = {"width": 48, "depth": 2, "latent_channels": 4, "head_dim": 12, "mlp_width": 64}
TOLD = [
    TextStates(jax.random.normal(jax.random.key(n), (2, 5, 24)), jnp.array([5, 3])) for n in (2, 3)
]


@pytest.mark.filterwarnings("ignore:17 frames are more")
def test_a_frame_is_told_the_prompt_of_its_section(pipe):
    """Latent frames begin at 0, 1, 5, 9 and 13 of 12 frames a second; those of 0.5 s at 9."""
    first, other = (np.asarray(pipe(text, **ASKED)) for text in (PROMPT, OTHER))
    same = np.asarray(pipe(PROMPT, prompt_at={"0.5s": PROMPT}, **ASKED))
    np.testing.assert_array_equal(same, first)
    made = np.asarray(pipe(PROMPT, prompt_at={0.5: OTHER}, **ASKED))
    to_first, to_other = (np.abs(made - x).max((0, 2, 3, 4)) for x in (first, other))
    assert (to_first[:3] < to_other[:3]).all() and (to_other[3:] < to_first[3:]).all()
    assert to_other[:3].min() > 0.01


@pytest.mark.parametrize(
    "network", [DIT, WanDiT(**SIZES, dtype="float32"), LTXDiT(**SIZES, dtype="float32")]
)
def test_what_a_window_is_told_is_that_of_its_frames(network):
    """Two frames of a clip of four in two sections have the bits of a clip of their prompt."""
    x, t = jax.random.normal(jax.random.key(1), (2, 2, 4, 4, 4)), jnp.full((2, 2), 0.5)
    call = Call.at(t)
    params = drawn(network.init, jax.random.key(0), x, call, Conditions(TOLD[0]))["params"]
    noise = jax.random.key(5)
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(noise, p.shape), params)
    apply = jax.jit(network.apply)
    sections = Conditions(in_sections(TOLD, (0, 2), 4))

    def at(frame):
        return call._replace(row=call.row._replace(frame=jnp.int32(frame)))

    for frame, told in ((0, TOLD[0]), (2, TOLD[1])):
        expected = apply({"params": params}, x, at(frame), Conditions(told))[0]
        found = apply({"params": params}, x, at(frame), sections)[0]
        np.testing.assert_array_equal(found, expected)
    between, alone = (
        apply({"params": params}, x, at(1), told)[0] for told in (sections, Conditions(TOLD[0]))
    )
    assert np.abs(between - alone).max() > 1e-3


BAD = [
    (PROMPT, {"0s": OTHER}, "prompt_at says 'a small blue box rests' for 0s too"),
    (None, {"0.5s": OTHER}, "prompt_at begins at 0.5 s; .*give one for 0s"),
    (PROMPT, {"1s": OTHER, "0.5s": PROMPT}, "at 0.5 s, after one at 1 s; .*in their order"),
    (PROMPT, {"1s": OTHER, "1.0": PROMPT}, "at 1 s, after one at 1 s"),
    (PROMPT, {"9s": OTHER}, "at 9 s; .* begin at 1.08 s; make a longer clip"),
    (PROMPT, {"0.01s": OTHER, "0.05s": PROMPT}, "4 go together; use times 0.333 s apart"),
    (PROMPT, {"soon": OTHER}, "prompt_at is 'soon'; it is a time in seconds"),
    (PROMPT, {"1s": 3}, "prompt_at is 3; it must be text"),
    (PROMPT, ["1s"], r"prompt_at is \['1s'\]; it says prompts by when"),
]


@pytest.mark.parametrize(("prompt", "sections", "message"), BAD)
def test_sections_that_cannot_be_are_refused(pipe, prompt, sections, message):
    with pytest.raises(jvdm.ConfigError, match=message):
        pipe.prepare(Request(prompt=prompt, prompt_at=sections, num_frames=17))


def test_a_run_that_changes_its_prompt_otherwise_has_no_sections(pipe):
    asked = Request(prompt=PROMPT, prompt_at={"0.5s": OTHER}, switch={"row1": OTHER})
    with pytest.raises(jvdm.ConfigError, match="prompt_at and switch were given"):
        pipe.prepare(asked)
    with pytest.raises(jvdm.ConfigError, match="then and prompt_at were given"):
        streaming.prepare_stream(pipe, Request(prompt_at={0: PROMPT, 1: OTHER}), {"2s": OTHER})


def test_a_stream_is_told_its_sections_in_time(pipe):
    asked = {"prompt_at": {"0s": PROMPT, "1s": OTHER}, "num_frames": 17}
    job = streaming.prepare_stream(pipe, Request(**asked), {})
    assert [(told.frame, told.prompt) for told in job.told] == [(0, PROMPT), (12, OTHER)]
    with pytest.raises(
        jvdm.ConfigError, match="at 1 s; the video has 1 s, .* make more than 13 frames"
    ):
        streaming.prepare_stream(pipe, Request(**asked | {"num_frames": 12}), {})


def test_the_command_takes_sections_one_by_one_and_makes_them_again(weights, tmp_path, capsys):
    def run(*options):
        code = cli.main(["generate", *options, "--output", str(tmp_path / "film.mp4"), "--json"])
        shown = capsys.readouterr()
        return code, json.loads(shown.out)["videos"][0] if code == 0 else shown.err

    known = ("--weights", str(weights), "--num-frames", "17", "--seed", "0")
    told = (f"--prompt-at=0s={PROMPT}", "--prompt-at", f"0.5s={OTHER}")
    code, record = run(*told, *known)
    assert code == 0 and record["settings"]["prompt_at"] == {"0s": PROMPT, "0.5s": OTHER}
    _, again = run("--like", str(tmp_path / "film.json"))
    assert again["sha256"] == record["sha256"] and record["sha256"]
    code, said = run("--prompt-at", "0.5s", OTHER, *known)
    assert code == 2 and "prompt_at begins at 0.5 s" in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--then 1s a --then 2s b", ["--then", "1s", "a", "2s", "b"]),
        ("--then=1s=a=b --seed 3", ["--seed", "3", "--then", "1s", "a=b"]),
        ("prompt --prompt-at 0s a=b 1.5s=c", ["prompt", "--prompt-at", "0s", "a=b", "1.5s", "c"]),
        ("--prompt_at 0s=a --other 1s=b", ["--other", "1s=b", "--prompt-at", "0s", "a"]),
    ],
)
def test_tables_may_be_given_value_by_value(words, expected):
    assert flags._gathered(words.split(), ["then", "prompt_at"]) == expected
