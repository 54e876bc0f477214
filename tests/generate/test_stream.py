"""Streams through the pipeline and the command: constant cost, prompts, files, Ctrl-C."""

import dataclasses
import gc
import json
import os
import re
import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvdm
from jvdm import cli
from jvdm import record as records
from jvdm.pipeline import Request, programs, streaming
from jvdm.samplers import GivenMatrix, MomentMatch, SharedNoise, SynchronousMatrix, synchronous
from jvdm.video import read_video

PROMPT, OTHER = "a large red ball rolls to the left", "a small blue box rests"
IMAGE = np.random.default_rng(0).integers(0, 256, (16, 32, 3)).astype(np.uint8)


def frames_of(pipe, prompt=PROMPT, **settings):
    with pytest.warns(UserWarning, match="its frames go together; the stream is a wave of lag 2"):
        parts = pipe.stream(prompt, **{"seed": 0} | settings)
    return np.concatenate([part.frames for part in parts])


def job_of(pipe: Any, then=None, **settings):
    request = Request(**{"prompt": PROMPT, "seed": 0} | settings)
    return streaming.prepare_stream(pipe, request, then or {})


def test_what_is_decoded_in_pieces_is_the_video_decoded_at_once(pipe):
    job = job_of(pipe)
    run = streaming.begin(pipe, job)
    network, state = streaming.network(pipe, job), run.state
    latents: list[Any] = [run.ready]
    for _ in range(4):
        state, block = programs.stream_chunk(*network, run.told[0][1], job.rows, state)
        latents.append(block)
    expected = pipe.decode(np.concatenate(latents, 1))[0]
    assert expected.shape[0] == 17
    found = frames_of(pipe, num_frames=17).astype(int)
    assert np.abs(found - expected).max() <= 1  # a value between two bytes may be rounded up


def test_two_hundred_chunks_are_the_same_programs_and_arrays(pipe):
    every: Any = (programs.stream_chunk, programs.decode_piece)
    job = job_of(pipe, {"20s": OTHER})
    run, counts = streaming.begin(pipe, job), []
    for chunk in range(202):
        run, frames = streaming.next_chunk(pipe, job, run)
        if chunk in (2, 100, 201):
            gc.collect()
            arrays = [(x.shape, str(x.dtype)) for x in jax.live_arrays()]
            counts.append((sorted(arrays), [program._cache_size() for program in every]))
    assert counts[0] == counts[1] == counts[2]
    assert run.frames == 1 + 4 * 201 and frames.shape == (4, 16, 32, 3)
    bytes_of = [sum(x.nbytes for x in jax.tree.leaves(part)) for part in (run.state, run.decoder)]
    assert bytes_of == [job.held.window + job.held.cache, job.held.decoder]


def test_a_stream_begins_the_next_chunk_before_frames_are_fetched(monkeypatch, pipe):
    job, said = job_of(pipe, num_frames=8), []
    run, parts = streaming.begin(pipe, job), []
    while run.frames < 8:
        run, frames = streaming.next_chunk(pipe, job, run)
        parts.append(frames)
    begun, fetched = streaming.begun, streaming.fetched
    monkeypatch.setattr(streaming, "begun", lambda *given: (said.append(1), begun(*given))[1])
    monkeypatch.setattr(streaming, "fetched", lambda shown: (said.append(0), fetched(shown))[1])
    np.testing.assert_array_equal(frames_of(pipe, num_frames=8), np.concatenate(parts))
    assert said == [1, 1, 0, 1, 0, 0]
    with pytest.raises(jvdm.NumericsError, match="a chunk of the stream has"):
        fetched((jnp.full((1, 1, 2, 2, 3), jnp.nan), jnp.zeros((1, 1)), jnp.array(True)))


def test_another_prompt_is_told_from_its_time_on(pipe):
    plain, told = frames_of(pipe, num_frames=33), frames_of(pipe, num_frames=33, then={1: OTHER})
    np.testing.assert_array_equal(told[:13], plain[:13])  # chunks begin at frames 1, 5, 9, 13
    changed = np.abs(told[13:].astype(int) - plain[13:]).reshape(5, -1).max(1)
    assert (changed > 0).all()
    first = frames_of(pipe, OTHER, num_frames=33)
    assert not np.array_equal(first[:13], plain[:13])


def test_who_keeps_an_old_stream_can_go_back_to_it(pipe):
    job = job_of(pipe)
    run = streaming.begin(pipe, job)
    once, first = streaming.next_chunk(pipe, job, run)
    once, second = streaming.next_chunk(pipe, job, once)
    again, _ = streaming.next_chunk(pipe, job, run)
    np.testing.assert_array_equal(streaming.next_chunk(pipe, job, again)[1], second)
    assert len(first) == 1 and len(second) == 4 and (run.frames, once.frames) == (0, 5)


def test_a_picture_begins_a_stream_and_its_length_is_exact(pipe):
    video = frames_of(pipe, image=IMAGE, duration="1.5s")
    assert len(video) == 18
    clip = pipe(PROMPT, seed=0, image=IMAGE, output_type="np", progress=False)
    assert np.abs(video[0].astype(int) - clip[0]).max() <= 1


def test_a_duration_is_the_next_legal_number_of_frames(pipe):
    for duration, frames in {"0.5s": 9, 0.7: 9, ".01m": 9, "0.01s": 1}.items():
        made = pipe.prepare(Request(prompt=PROMPT, duration=duration)).settings
        assert (made.num_frames, made.duration) == (frames, None)
    made = pipe.prepare(Request(prompt=PROMPT, duration="1s", fps=8.0)).settings
    assert made.num_frames == 9


def with_sampling(pipe, **changes):
    sampling = dataclasses.replace(pipe.system.sampling, **changes)
    return dataclasses.replace(pipe, system=dataclasses.replace(pipe.system, sampling=sampling))


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({}, {"duration": "0s"}, "duration is '0s'; it is a time above 0"),
        ({}, {"duration": "long"}, "duration is 'long'.*write it as 60s"),
        ({}, {"duration": True}, "duration is True"),
        ({}, {"duration": 2, "num_frames": 9}, "num_frames is 9 and duration 2"),
        ({}, {"num_frames": 0}, "num_frames 0; a video has one frame or more"),
        ({}, {"num_videos": 2}, "2 videos; a stream is one video"),
        (
            {},
            {"matrix": synchronous(jax.numpy.ones(2), 3)},
            "matrix was given; it is made for one clip",
        ),
        ({}, {"then": {"2 days": OTHER}}, "then is '2 days'"),
        ({"hooks": (MomentMatch(),)}, {}, "a stream with hooks; they count the rows"),
        ({"noise": SharedNoise(0.2)}, {}, "a stream with the noise SharedNoise"),
        ({"matrix": GivenMatrix(SynchronousMatrix(), (0,))}, {}, "GivenMatrix.*known length"),
    ],
)
def test_what_cannot_be_streamed_is_refused_before_anything_is_made(
    pipe, changes, settings, message
):
    with pytest.raises(jvdm.ConfigError, match=message):
        with_sampling(pipe, **changes).stream(PROMPT, seed=0, **settings)


def test_dense_rows_and_lags_longer_than_the_steps_are_refused(weights):
    for sampling, message in (
        ({"policy": "draft", "policy.density": 0.5, "policy.dense_rows": 0.5}, "dense_above says"),
        ({"matrix": "lag", "matrix.lag": 4}, "lag 4 and 3 steps"),
        ({"matrix": "truncated"}, "TruncatedMatrix.*known length"),
    ):
        pipe = jvdm.load(weights, sampling=sampling, progress=False)
        with pytest.raises(jvdm.ConfigError, match=message):
            pipe.stream(PROMPT, seed=0)


@pytest.fixture
def command(weights, tmp_path, capsys):
    """Runs `jvdm generate --stream`; returns exit code, record of the video and what was said."""

    def run(*options, prompt=PROMPT, output="film.mp4"):
        words = [prompt] if prompt else []
        always = ["--weights", str(weights), "--output", str(tmp_path / output), "--json"]
        code = cli.main(["generate", *words, *always, *options])
        said = capsys.readouterr()
        made = json.loads(said.out).get("videos") if said.out else None
        return code, made and made[0], said.err

    return run


@pytest.mark.parametrize("ending", ["mp4", "webm"])
def test_a_stream_is_a_film_and_its_record_makes_it_again(command, tmp_path, ending):
    options = ["--stream", "--duration", "2s", "--seed", "3", "--then", "1s", OTHER]
    code, record, _ = command(*options, output=f"film.{ending}")
    assert code == 0 and record["status"] == "done"
    film = read_video(tmp_path / f"film.{ending}")
    assert (film.frames.shape, film.fps) == ((24, 16, 32, 3), 12.0)
    assert record["settings"]["num_frames"] == 24 and record["settings"]["then"] == {"1s": OTHER}
    stream = {name: record["system"]["stream"][name] for name in ("rows", "window", "context")}
    assert stream == {"rows": 2, "window": 3, "context": 1}
    assert all(record["system"]["stream"]["held_bytes"][name] > 0 for name in ("window", "decoder"))
    like = ["--like", record["outputs"]["record"]]
    code, again, _ = command(*like, prompt=None, output=f"again.{ending}")
    assert code == 0 and again["sha256"] == record["sha256"]
    code, longer, _ = command(*like, "--duration", "3s", prompt=None, output=f"long.{ending}")
    assert code == 0 and longer["settings"]["num_frames"] == 36
    first = read_video(tmp_path / f"long.{ending}").frames[:12]
    np.testing.assert_array_equal(first, film.frames[:12])


@pytest.mark.parametrize("length", [["--duration", "60s"], []], ids=["a minute", "for ever"])
def test_ctrl_c_ends_a_stream_with_a_whole_film(monkeypatch, command, tmp_path, length):
    following = streaming.next_chunk

    def pressed(pipe, job, run):
        if run.frames == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return following(pipe, job, run)

    monkeypatch.setattr(streaming, "next_chunk", pressed)
    code, _, said = command("--stream", "--seed", "0", *length)
    assert code == 130 and "stopped by Ctrl-C after 9 frames; they are saved" in said
    assert len(read_video(tmp_path / "film.mp4")) == 9
    record = records.read(tmp_path / "film.json")
    assert record.settings["num_frames"] == 9
    assert record.status == ("interrupted" if length else "done")


def test_a_stream_that_fails_leaves_what_was_made(monkeypatch, command, tmp_path):
    following = streaming.next_chunk

    def failing(pipe, job, run):
        if run.frames == 5:
            raise jvdm.NumericsError("chunk 2 of the stream has a non-finite value", "", "")
        return following(pipe, job, run)

    monkeypatch.setattr(streaming, "next_chunk", failing)
    code, _, said = command("--stream", "--seed", "0")
    assert code == 2 and "chunk 2" in said
    assert len(read_video(tmp_path / "film.mp4")) == 5
    assert records.read(tmp_path / "film.json").status == "interrupted"


@pytest.mark.parametrize(
    ("options", "output", "message"),
    [
        (["--stream"], "x.gif", "--output ends in .gif; a stream is written as it goes, as .mp4"),
        (["--stream", "--latents-only"], "x.mp4", "the latents of a stream are not kept"),
        (["--then", "1s", OTHER], "x.mp4", "--then was given.*add --stream"),
        (["--stream", "--num-videos", "2"], "x.mp4", "a stream is one video"),
        (["--stream", "--duration", "0"], "x.mp4", "duration is '0'"),
    ],
)
def test_options_that_no_stream_has_exit_2(command, tmp_path, options, output, message):
    code, _, said = command(*options, output=output)
    assert code == 2 and not list(tmp_path.iterdir())
    lines = [line for line in said.splitlines() if line.startswith("jvdm: ")]
    assert len(lines) == 1 and re.search(message, lines[0]), said
