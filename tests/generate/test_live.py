"""`jvdm stream`: lines that steer a film, what came late, and what a killed one leaves."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import jvdm
from jvdm import cli, live
from jvdm.live import Playout, Script, check_line, lines_of
from jvdm.pipeline import streaming
from jvdm.pipeline.session import read_session
from jvdm.video import read_video

ROOT = Path(__file__).resolve().parents[2]
PROMPT, OTHER = "a large red ball rolls to the left", "a small blue box rests"


@pytest.fixture
def command(weights, tmp_path, capsys, monkeypatch):
    """Runs `jvdm stream`; returns exit code, result and what was said.

    Frames are written without loss of what tells two films apart: their digests are compared.
    """
    monkeypatch.setattr(sys, "stdin", None)

    def run(*options, prompt=PROMPT, output="film.mp4"):
        words = [] if prompt is None else [prompt, "--seed", "0", "--weights", str(weights)]
        code = cli.main(["stream", *words, "--output", str(tmp_path / output), "--json", *options])
        said = capsys.readouterr()
        return code, json.loads(said.out) if said.out else None, said.err

    return run


def digest(result):
    return result["videos"][0]["sha256"]["pixels"]


def test_lines_at_their_times_steer_a_film_that_its_record_makes_again(command, tmp_path):
    _, plain, _ = command("--duration", "2s")
    at = ["--at", ".5s", f"prompt {OTHER}", "1.2s", "rewind 1s", "--keep", "2s"]
    at[3:3] = ["1.6s", f"prompt {PROMPT}"]
    code, told, said = command("--duration", "2s", *at, output="told.mp4")
    assert code == 0 and digest(told) != digest(plain)
    assert "'rewind 1s' is carried out at 1.42 s of the film" in said
    assert f"'prompt {PROMPT}' is carried out at 1.75 s of the film" in said
    frames = read_video(tmp_path / "told.mp4").frames
    assert len(frames) == 24 + 12 and told["delivery"]["frames"] == 36
    assert told["delivery"]["held_bytes"] > 6 * plain["delivery"]["held_bytes"]
    like = ["--like", told["videos"][0]["outputs"]["record"]]
    code, again, _ = command(*like, prompt=None, output="again.mp4")
    assert code == 0 and digest(again) == digest(told)
    assert cli.main(["generate", *like]) == 2


def test_lines_that_come_while_it_plays_are_answered(command, monkeypatch, tmp_path):
    """The chunk of frame 5 is followed by all of them, one after the other."""
    ends = os.pipe()
    monkeypatch.setattr(sys, "stdin", os.fdopen(ends[0]))
    following, session = streaming.next_chunk, tmp_path / "s.safetensors"
    lines = (f"prompt {OTHER}\n", f"save {session}\n", "dance\n", "rewind 1m\n", "pause\nresume\n")

    def spoken(pipe, job, run):
        if run.frames == 5:
            os.write(ends[1], "".join(lines).encode())
        if run.frames == 21:
            os.write(ends[1], b"stop\n")
        while run.frames in (9, 25) and not heard.wait(0.01):
            pass
        return following(pipe, job, run)

    heard = threading.Event()
    put = live.queue.Queue.put

    def noted(self, line, *more):
        put(self, line, *more)
        heard.set()

    monkeypatch.setattr(live.queue.Queue, "put", noted)
    monkeypatch.setattr(streaming, "next_chunk", spoken)
    code, result, said = command()
    os.close(ends[1])
    assert code == 0 and session.exists()
    for part in (
        f"'prompt {OTHER}' is carried out at",
        "'dance' was not carried out: 'dance' is no command; a line is: prompt TEXT",
        "'rewind 1m' was not carried out: rewind by 60 s; the states of the last 0 s are kept",
        "paused; resume goes on",
        "'stop' is carried out at",
    ):
        assert part in said
    settings = result["videos"][0]["settings"]
    assert [line for line in settings["at"].values()] == [f"prompt {OTHER}", "stop"]
    assert result["videos"][0]["status"] == "done"


def test_a_killed_stream_goes_on_from_its_last_chunk(weights, tmp_path, command):
    """SIGKILL after some chunks; the frames after the saved session are those of one run."""
    file = tmp_path / "s.safetensors"
    words = [PROMPT, "--seed", "0", "--weights", str(weights), "--save", str(file)]
    arguments = ["stream", *words, "--output", str(tmp_path / "killed.mp4")]
    program = [sys.executable, "-m", "jvdm", *arguments]
    process = subprocess.Popen(program, cwd=ROOT, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    deadline = time.time() + 60
    while process.poll() is None and time.time() < deadline:
        if file.exists() and read_session(file)[0]["frames"] > 5:
            break
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and read_session(file)[0]["frames"] > 5
    code, result, _ = command("--resume", str(file), "--duration", "60s", prompt=None)
    assert code == 0
    pipe = jvdm.load(weights, progress=False)
    with pytest.warns(UserWarning, match="its frames go together"):
        parts = [part.frames for part in pipe.stream(PROMPT, seed=0, num_frames=720)]
    rest = np.concatenate(parts)[720 - result["delivery"]["frames"] :]
    made = live.outputs.hashlib.sha256(np.ascontiguousarray(rest).data).hexdigest()
    assert digest(result) == made and len(rest) < 720


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--at", "soon", "stop"], "at is 'soon'"),
        (["--at", "1s", "dance"], "'dance' is no command; a line is: prompt TEXT, .*or stop"),
        (["--keep", "long"], "keep is 'long'"),
        (["--resume", "none.safetensors"], "--prompt was given with --resume"),
        (["--num-videos", "2"], "a stream is one video"),
        (["--save", "/proc/none/s.safetensors"], "/proc/none"),
        (["--keep", "10000h"], "of memory are needed"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(command, tmp_path, options, message):
    code, _, said = command(*options)
    assert code == 2 and not list(tmp_path.iterdir())
    (line,) = [line for line in said.splitlines() if line.startswith("jvdm: ")]
    assert re.search(message, line), said


def test_a_session_that_is_none_is_refused(command, tmp_path):
    for content in (b"", b"nothing"):
        (tmp_path / "x").write_bytes(content)
        code, _, said = command("--resume", str(tmp_path / "x"), prompt=None)
        assert code == 2 and str(tmp_path / "x") in said


def test_chunks_that_come_late_stop_what_is_shown():
    playout = Playout(fps=10.0, began=100.0)
    playout.arrived(102.0, 10)  # shown until 103
    playout.arrived(102.5, 10)  # until 104
    playout.arrived(104.5, 10)  # late: until 105.5
    playout.paused(60.0)
    playout.arrived(165.2, 10)
    found = playout.as_data()
    expected = {"frames": 40, "chunks": 4, "first_frame": 2.0, "late_chunks": 1, "stalled": 0.5}
    assert {name: found[name] for name in expected} == expected
    assert (found["chunk_median"], found["chunk_longest"]) == (pytest.approx(0.7), 2.0)
    assert found["frames_per_second"] == pytest.approx(30 / 3.2)


def test_lines_are_read_as_they_come_and_long_ones_end():
    ends = os.pipe()
    lines = lines_of(ends[0])
    os.write(ends[1], b"one\ntw")
    assert next(lines) == "one"
    os.write(ends[1], b"o\n\xff\nlast")
    os.close(ends[1])
    assert list(lines) == ["two", "�", "last"]
    script = Script({"1s": "stop", "0.5s": "pause\nresume"}, 10.0, ["rewind 1s", " "])
    assert script.wait(5.0) == "rewind 1s" and script.wait(0.0) is None
    assert [list(script.due(frames)) for frames in (4, 5, 9, 30)] == [
        [],
        ["pause", "resume"],
        [],
        ["stop"],
    ]
    for line in ("stop now", "save", "pause 2s"):
        with pytest.raises(jvdm.ConfigError, match="a line is: prompt TEXT"):
            check_line(line)
