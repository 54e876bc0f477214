"""What is told a stream too late, in a form that is none or beyond the words: nothing is silent."""

import dataclasses
import re
import threading
from typing import Any

import numpy as np
import pytest

import jvdm
from jvdm.attention import POLICIES, TileBefore
from jvdm.live import LONGEST, Play, Playout, Script, check_line
from jvdm.pipeline import Request, streaming
from jvdm.pipeline.session import Rewind, begin_session, load_session
from tests.generate.test_live import OTHER, PROMPT, command

__all__ = ["command"]
pytestmark = pytest.mark.filterwarnings("ignore:its frames go together")

# Chunks of the random model begin at frames 0, 1, 5, 9, 13, ...; it makes 12 a second.
LATE = {
    "then behind the end": (
        {"then": {"5s": OTHER}},
        "then has 'a small .*' at 5 s; the video has 1",
    ),
    "then at the end": ({"then": {1: OTHER}}, "at 1 s; .*; make more than 13 frames .1.08 s."),
    "then in the last chunk": (
        {"then": {"0.8s": OTHER}},
        "at 0.8 s; .* no chunk .* begins so late",
    ),
    "a section in it": (
        {"prompt_at": {"0.9s": OTHER}},
        "prompt_at has .* at 0.9 s; the video has 1",
    ),
    "two in one chunk": (
        {"then": {"0.5s": OTHER, "0.6s": PROMPT}},
        "at 0.6 s; no chunk would be told 'a small blue box rests', from 0.5 s; .* 0.333 s apart",
    ),
    "one in place of the first": (
        {"then": {"0.01s": OTHER}},
        "no chunk would be told 'a large red",
    ),
    "the same time twice": ({"then": {"0.5s": OTHER, 0.5: PROMPT}}, "0.5s, 0.5; two are the same"),
    "no time": ({"then": {"-1s": OTHER}}, "then is '-1s'; it is a time above 0"),
}


@pytest.mark.parametrize(("settings", "message"), LATE.values(), ids=LATE)
def test_what_no_chunk_could_show_is_refused(pipe, settings, message):
    with pytest.raises(jvdm.ConfigError, match=message):
        pipe.stream(PROMPT, seed=0, duration="1s", **settings)


def test_the_last_prompt_that_a_chunk_can_show_is_told(pipe):
    """The last of 12 frames belong to the chunk of frame 9, which is .75 s."""

    def job_of(then):
        asked = Request(prompt=PROMPT, seed=0, num_frames=12)
        return streaming.prepare_stream(pipe, asked, then)

    job = job_of({"0.75s": OTHER})
    assert [entry.frame for entry in job.told] == [0, 9] and job.last_begin == 9
    run, told = streaming.begin(pipe, job), []
    while run.frames < 12:
        told.append([entry.prompt for entry in job.told if entry.frame <= run.frames][-1])
        run, _ = streaming.next_chunk(pipe, job, run)
    assert told == [PROMPT] * 3 + [OTHER]
    with pytest.raises(jvdm.ConfigError, match="at 0.834 s"):
        job_of({"0.834s": OTHER})
    for frames, begin in ((1, 0), (2, 1), (5, 1), (6, 5), (13, 9), (14, 13)):
        asked = Request(prompt=PROMPT, seed=0, num_frames=frames)
        assert streaming.prepare_stream(pipe, asked, {}).last_begin == begin
    assert streaming.prepare_stream(pipe, Request(prompt=PROMPT, seed=0), {}).last_begin is None


def test_words_beyond_the_vocabulary_are_said_of_every_prompt(pipe):
    later = {"0.5s": "a purple dragon rests"}
    with pytest.warns(UserWarning, match="dragon"):
        pipe.stream(PROMPT, seed=0, duration="1s", then=later)
    with pytest.warns(UserWarning, match="dragon"):
        pipe.session(PROMPT, seed=0, duration="1s", then=later)


@pytest.mark.parametrize("name", [*POLICIES, "tile_before"])
def test_attention_by_the_rows_of_a_clip_is_refused_for_that_reason(pipe, name):
    policy: Any = {**POLICIES, "tile_before": TileBefore()}[name]
    if hasattr(policy, "density"):  # few tokens have no few blocks
        policy = dataclasses.replace(policy, density=1.0)
    sampling = dataclasses.replace(pipe.system.sampling, policy=policy)
    sized = dataclasses.replace(pipe, system=dataclasses.replace(pipe.system, sampling=sampling))
    phases = dict(policy.phases(pipe.system.sampling.levels.num_steps))

    def prepared():
        return streaming.prepare_stream(sized, Request(prompt=PROMPT, seed=0), {})

    if policy.banks:  # rows of a synchronous stream do not write at every level
        with pytest.raises(jvdm.ConfigError, match=f"keeps {policy.banks} levels apart"):
            prepared()
        return
    if len(phases) == 1:
        prepared()
        return
    reason = "dense_rows 0.; dense_above says it"
    if phases.keys() != {"dense", "sparse"}:
        reason = f"rows are those of one clip: {', '.join(phases)}; those of a stream repeat"
    with pytest.raises(jvdm.ConfigError, match=f"a stream with the policy .*{reason}"):
        prepared()


LINES = {
    "a line behind the end": (
        ["--at", "5s", f"prompt {OTHER}"],
        "at has 'prompt .*' at 5 s; a chunk",
    ),
    "a line in the last chunk": (["--at", "0.9s", "stop"], "the last one begins at 0.75 s"),
    "an empty line": (["--at", "0.5s", ""], "'' is no command; a line is: prompt TEXT"),
    "a line at 0": (["--at", "0s", "stop"], "at is '0s'; it is a time above 0"),
    "then and prompt_at": (
        ["--then", "0.5s", OTHER, "--prompt-at", f"0.6s={OTHER}"],
        "then and prompt_at were given",
    ),
    "then behind the end": (["--then", "2s", OTHER], "then has .* at 2 s; the video has 1 s"),
}


@pytest.mark.parametrize(("options", "message"), LINES.values(), ids=LINES)
def test_the_command_refuses_them_before_anything_is_made(command, tmp_path, options, message):
    code, _, said = command("--duration", "1s", *options)
    assert code == 2 and not list(tmp_path.iterdir())
    (line,) = [line for line in said.splitlines() if line.startswith("jvdm: ")]
    assert re.search(message, line), said


def played(pipe, at, lines=(), **settings):
    """Returns what was said of a film of 12 frames, and how many it has."""
    session = begin_session(pipe, Request(prompt=PROMPT, seed=0, num_frames=12, **settings))
    script = Script(at, 12.0, lines, session.job.last_begin)
    return sum(len(chunk) for chunk in Play(script, Playout(12.0, 0.0)).chunks(session))


@pytest.fixture
def said(monkeypatch):
    """Collects what is said of lines."""
    found = []
    monkeypatch.setattr("jvdm.live.outputs.say", lambda *texts: found.extend(texts))
    return found


def test_a_pause_ends_with_a_line_of_the_same_time_or_when_nobody_can_say_more(pipe, said):
    assert played(pipe, {"0.2s": "pause\npause\nresume\nresume"}) == 12
    assert said == [
        "paused; resume goes on",
        "'pause' was not carried out: the film is paused already; say resume",
        "'resume' was not carried out: nothing is paused",
    ]
    said.clear()
    assert played(pipe, {"0.2s": "pause"}) == 12
    assert said[1:] == ["the film goes on: nobody can say resume, standard input has ended"]


def test_lines_that_come_when_the_film_has_ended_are_said(pipe, said):
    """The first one ends it; one comes at a later time and one is typed too late."""
    read, more = threading.Event(), threading.Event()

    def typed():
        more.wait(10)
        yield f"prompt {OTHER}"
        read.set()

    session = begin_session(pipe, Request(prompt=PROMPT, seed=0, num_frames=12))
    script = Script({"0.2s": "stop", "0.7s": f"prompt {OTHER}"}, 12.0, typed(), 9)
    for _ in Play(script, Playout(12.0, 0.0)).chunks(session):
        more.set()
        read.wait(10)
    late = f"'prompt {OTHER}' was not carried out: the film has ended"
    assert said.count(late) == 1 or said.count(late) == 2
    assert said[-1] == late


@pytest.mark.parametrize(
    "line", ["prompt " + "a" * LONGEST, "prompt " + "é" * (LONGEST // 2)], ids=["bytes", "letters"]
)
def test_a_line_that_is_too_long_is_refused_instead_of_cut(line):
    with pytest.raises(jvdm.ConfigError, match="65,536 bytes at most"):
        check_line(line)
    check_line("prompt " + "a" * 1000)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (Rewind(-1.0), "rewind is -1.0; it is a time above 0"),
        (Rewind(0.0), "rewind is 0.0"),
        (Rewind(float("nan")), "rewind is nan"),
        ("rewind soon", "rewind is 'soon'"),
        (f"say {OTHER}", "'say a small blue box rests' is no command; a command is: prompt TEXT"),
        ("rewind 9s", "the states of the last 0 s are kept"),
    ],
    ids=["before", "now", "nan", "text", "another word", "too far"],
)
def test_commands_that_are_none_are_refused(pipe, told, message):
    session = begin_session(pipe, Request(prompt=PROMPT, seed=0, num_frames=12), keep="1s")
    with pytest.raises(jvdm.ConfigError, match=message):
        session.step(told)


def test_a_film_that_ended_within_a_chunk_goes_on_with_its_other_frames(pipe, tmp_path):
    """12 frames end after 3 of a chunk's 4."""
    path = tmp_path / "s.safetensors"

    def made(session):
        parts = []
        while not session.done:
            session, frames = session.step()
            parts.append(frames)
        return session, np.concatenate(parts)

    whole = made(begin_session(pipe, Request(prompt=PROMPT, seed=0, num_frames=26)))[1]
    session, first = made(begin_session(pipe, Request(prompt=PROMPT, seed=0, num_frames=12)))
    session.save(path)
    with pytest.raises(jvdm.ConfigError, match=r"of 12 frames \(1 s\); .*12, .* duration='60s'"):
        load_session(pipe, path)
    with pytest.raises(jvdm.ConfigError, match="the video is to have 6"):
        load_session(pipe, path, duration="0.5s")
    longer = load_session(pipe, path, num_frames=26)
    assert len(longer.step()[1]) == 1
    np.testing.assert_array_equal(np.concatenate([first, made(longer)[1]]), whole)
