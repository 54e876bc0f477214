"""The demo over HTTP, without a browser: streams, prompts, pictures, turns, and harm."""

import dataclasses
import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from jvdm import cli
from jvdm.attention import Tally, summary
from jvdm.samplers.guidance import Unguided
from jvdm.samplers.rules import ExplicitLevels
from jvdm.serving import demo_streams
from jvdm.serving.demo import Demo
from jvdm.serving.limits import Limits
from jvdm.video import read_video
from tests.serving.demo_client import Client, shown, wait_until_free
from tests.serving.hostile import HOSTILE, png, text64

pytest.importorskip("gradio", reason="the demo needs gradio")

PROMPT, OTHER = "a large red ball rolls to the left", "a small blue box rests"
SMALL = {"prompt": PROMPT, "seed": 3, "height": 16, "width": 16}


@pytest.fixture(scope="module")
def demo(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    limits = Limits(max_streams=2, max_frames=400, max_prompt=300, keep_jobs=8)
    made = Demo(pipe, folder / "work", limits, 1_000_000)
    yield made
    made.close()


@pytest.fixture(scope="module")
def address(demo):
    with shown(demo) as where:
        yield where


@pytest.fixture
def client(address):
    return Client(address)


def frames_of(client: Client, path: str, folder: pathlib.Path) -> np.ndarray:
    """Returns the frames of a film, which comes in parts as a page reads it."""
    content = client("GET", f"{path}/film")
    half = len(content) // 2
    parts = [client("GET", f"{path}/film?start={start}") for start in (0, half, len(content))]
    assert (parts[0], parts[1], parts[2]) == (content, content[half:], b"")
    (folder / "film.mp4").write_bytes(content)
    return read_video(folder / "film.mp4").frames


def test_a_stream_is_made_to_its_end(client, tmp_path):
    path = client.start(**SMALL, duration="4s", attention="draft", density=0.5)
    done = client.until(path, "done")
    assert (done["frames"], done["fps"], done["seed"], done["error"]) == (24, 6.0, 3, None)
    assert done["told"] == [{"frame": 0, "prompt": PROMPT}] and done["speed"] > 1
    frames = frames_of(client, path, tmp_path)
    assert frames.shape == (24, 16, 16, 3) and frames.std() > 5

    # 8 rows of a clip of 3 latent frames; then the wave of lag 4, a frame a cycle.
    assert done["of"] == 8 and [row["row"] for row in done["rows"]] == list(range(1, 33))
    clip, wave = done["rows"][:8], done["rows"][8:]
    assert all(row["frame"] == 0 and len(set(row["levels"])) == 1 for row in clip)
    assert clip[-1]["levels"] == [0, 0, 0]
    assert [row["frame"] for row in wave] == [i // 4 for i in range(24)]
    assert all(row["levels"][0] <= row["levels"][1] <= row["levels"][2] for row in wave)
    assert all(row["levels"][1] == 0 for row in wave[3::4])
    # 4 of the 64 tokens are one block: nothing can be left out at this size.
    assert len(done["density"]) == 7
    assert all(0 < chunk["density"] <= 1 for chunk in done["density"])


def test_density_is_that_of_the_last_chunk():
    def tally(calls: float, density: float) -> Tally:
        sums: Any = [np.array([value], np.float32) for value in (calls, density, 0.0, 0.0)]
        return Tally(*sums)

    change = demo_streams._difference([tally(8, 6.5)], [tally(4, 4.0)])
    assert summary(change)["density"] == pytest.approx(0.625)


def test_another_prompt_is_seen_from_the_next_chunk_on(client, tmp_path):
    plain = client.start(**SMALL, duration="6s")
    client.until(plain, "done")
    told = client.start(**SMALL, duration="6s")
    client.until(told, "running", query="?played=0", frames=5)
    for wrong in (None, 7, "", "a" * 400):
        assert "prompt" in client("POST", f"{told}/prompt", {"prompt": wrong})["error"]["what"]
        assert client.status == 422
    client("POST", f"{told}/prompt", {"prompt": OTHER})
    assert client.status == 200
    done = client.until(told, "done")
    _, switch = done["told"]
    assert switch["prompt"] == OTHER and 0 < switch["frame"] <= 26  # 2 s ahead, and two chunks
    before, after = (frames_of(client, path, tmp_path).astype(int) for path in (plain, told))
    at = switch["frame"]
    np.testing.assert_array_equal(before[:at], after[:at])
    assert all(abs(old - new).max() > 8 for old, new in zip(before[at:], after[at:], strict=True))

    client("POST", f"{told}/prompt", {"prompt": PROMPT})
    assert client.status == 422


def test_the_film_is_made_only_a_little_ahead(client):
    path = client.start(**SMALL, duration="40s")
    client.until(path, "running", query="?played=0", frames=13)
    for _ in range(20):
        now = client("GET", f"{path}?played=0")
    assert now["frames"] <= 12 + 4 + 2 * 4 + 4
    client.until(path, "running", query="?played=10", frames=70)
    client("DELETE", path)


def test_cancel_frees_the_device(address, demo):
    first, second, third = (Client(address, place) for place in (1, 2, 3))
    running = [someone.start(**SMALL, duration="40s") for someone in (first, second)]
    for someone, path in zip((first, second), running, strict=True):
        someone.until(path, "running", query="?played=0", frames=13)
    waiting = third.start(**SMALL, duration="1s")
    for _ in range(20):
        now = third("GET", waiting)
        assert (now["state"], now["ahead"]) == ("queued", 2)
    first("DELETE", running[0])
    assert third.until(waiting, "done")["frames"] == 6
    assert first.until(running[0], "cancelled")["frames"] < 30
    assert second("GET", f"{running[1]}?played=0")["state"] == "running"
    second("DELETE", running[1])
    second.until(running[1], "cancelled")
    wait_until_free(demo)


def test_faster_settings_are_those_that_the_system_lets_one_set(demo, monkeypatch):
    assert demo.about["fast"] == {"steps": 4, "guidance": 1}
    sampling = demo.pipe.system.sampling
    levels, guidance = ExplicitLevels((1.0, 0.5, 0.0)), Unguided()
    fixed = dataclasses.replace(sampling, levels=levels, guidance=guidance)
    system = dataclasses.replace(demo.pipe.system, sampling=fixed)
    pipe = dataclasses.replace(demo.pipe, system=system)
    monkeypatch.setattr(demo, "pipe", pipe)
    assert demo._fast() == {"steps": None, "guidance": None}


def test_programs_of_many_sizes_do_not_fill_the_memory(client, demo, monkeypatch):
    dropped, room = [], dataclasses.replace(demo.jobs._maker, most_sizes=2)
    monkeypatch.setattr(demo.jobs, "_maker", room)
    monkeypatch.setattr("jax.clear_caches", lambda: dropped.append(len(room._sizes)))
    for seconds, steps in ((1, 4), (2, 4), (1, 3), (1, 3), (1, 2)):
        asked = {**SMALL, "duration": f"{seconds}s", "num_inference_steps": steps}
        client.until(client.start(**asked), "done")
    assert dropped == [2]


def test_what_waits_is_cancelled_at_once(address):
    someone, other = Client(address, 1), Client(address, 2)
    running = [someone.start(**SMALL, duration="40s") for _ in range(2)]
    for path in running:
        someone.until(path, "running", query="?played=0", frames=13)
    waiting = other.start(**SMALL)
    other("DELETE", waiting)
    assert other.until(waiting, "cancelled")["frames"] == 0
    someone.end(*running)


def test_many_cancel_at_once(address, demo):
    """While others ask how far it is, for its film, and for another prompt."""
    client = Client(address)
    path = client.start(**SMALL, duration="40s")
    client.until(path, "running", query="?played=0", frames=13)
    asked = 4 * [
        ("DELETE", path, None),
        ("GET", f"{path}?played=1", None),
        ("POST", f"{path}/prompt", {"prompt": OTHER}),
        ("GET", f"{path}/film?start=0", None),
    ]

    def ask(request):
        one = Client(address)
        one(*request)
        return request[0], one.status

    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(ask, asked))
    assert all(status == 200 or (kind, status) == ("POST", 422) for kind, status in answers)
    assert client.until(path, "cancelled")["error"] is None
    wait_until_free(demo)
    client.until(client.start(**SMALL, duration="1s"), "done")


def test_who_has_gone_is_not_waited_for(address, demo):
    gone, other = Client(address, 1), Client(address, 2)
    left = [gone.start(**SMALL, duration="40s") for _ in range(2)]
    for path in left:
        gone.until(path, "running", query="?played=0", frames=13)
    waiting = other.start(**SMALL, duration="1s")
    for path in left:
        stream = demo.find(demo_streams.LiveStream, path.rpartition("/")[2])
        stream._asked -= demo_streams.LOST_S
    other.until(waiting, "done")
    wait_until_free(demo)
    assert {gone("GET", path)["state"] for path in left} == {"cancelled"}


def test_who_watches_slowly_gives_way_to_those_who_wait(address, demo, monkeypatch):
    slow, other = Client(address, 1), Client(address, 2)
    held = [slow.start(**SMALL, duration="40s") for _ in range(2)]
    for path in held:
        slow.until(path, "running", query="?played=0", frames=13)
    monkeypatch.setattr(demo_streams, "SLACK_S", -3.0)  # after 13 frames or more: a second at most
    time.sleep(1.0)
    assert [slow("GET", f"{path}?played=0")["state"] for path in held] == ["running"] * 2
    other.until(other.start(**SMALL, duration="1s"), "done")
    errors = [slow("GET", f"{path}?played=0")["error"] for path in held]
    assert "others wait for its place" in [error["why"] for error in errors if error is not None]
    slow.end(*held)
    wait_until_free(demo)


def test_streams_of_several_take_turns(address, monkeypatch):
    noted, turns = demo_streams.LiveStream._note_rows, []

    def note(stream, *given):
        noted(stream, *given)
        turns.append(stream.id)

    monkeypatch.setattr(demo_streams.LiveStream, "_note_rows", note)
    people = Client(address, 1), Client(address, 2)
    paths = [someone.start(**SMALL, duration="40s") for someone in people]
    for someone, path in zip(people, paths, strict=True):
        someone.until(path, "running", query="?played=0", frames=13)
    turns.clear()
    for _ in range(2):  # neither is watched slowly any more
        for someone, path in zip(people, paths, strict=True):
            someone("GET", path)
    for someone, path in zip(people, paths, strict=True):
        someone.until(path, "done")
    names = [path.rpartition("/")[2] for path in paths]
    last = [len(turns) - turns[::-1].index(name) for name in names]
    for name in names:  # of about 57 turns each
        assert turns[: min(last)].count(name) > 15


def test_several_names_give_no_more_turns(address, demo):
    """A client with many streams is one client, whatever its requests say of it."""
    said = ("X-Client", "X-Forwarded-For", "X-Visitor")
    crowd = [Client(address, 1, **dict.fromkeys(said, name)) for name in "abcd"]
    paths = [one.start(**SMALL, duration="40s") for one in crowd]
    for one, path in zip(crowd[:2], paths, strict=False):
        one.until(path, "running", query="?played=0", frames=13)
    other = Client(address, 2)
    waiting = other.start(**SMALL, duration="40s")
    crowd[0]("DELETE", paths[0])
    other.until(waiting, "running", query="?played=0", frames=13)
    now = [one("GET", f"{path}?played=0") for one, path in zip(crowd, paths, strict=True)]
    assert [stream["state"] for stream in now] == ["cancelled", "running", "queued", "queued"]
    other("DELETE", waiting)
    crowd[1].end(*paths[1:])
    wait_until_free(demo)


def test_people_behind_one_address_take_turns(address, demo):
    """Who came later with one stream is before the third stream of who came first."""
    first, second = (Client(address, 1, **{"X-Visitor": name}) for name in ("one", "two"))
    held = [first.start(**SMALL, duration="40s") for _ in range(2)]
    for path in held:
        first.until(path, "running", query="?played=0", frames=13)
    third, other = first.start(**SMALL, duration="40s"), second.start(**SMALL, duration="40s")
    first("DELETE", held[0])
    second.until(other, "running", query="?played=0", frames=13)
    assert first("GET", third)["state"] == "queued"
    second("DELETE", other)
    first.end(*held[1:], third)
    wait_until_free(demo)


def test_the_first_clip_is_cancelled_between_rows(demo, tmp_path, monkeypatch):
    stream = demo.stream("somebody", {**SMALL, "duration": "1s"})
    one = demo_streams.LiveStream(demo.pipe, stream.job, tmp_path)
    noted = one._note_rows

    def note(*given):
        noted(*given)
        if one.row == 2:
            one.cancel()

    monkeypatch.setattr(one, "_note_rows", note)
    with pytest.raises(demo_streams.Preempted):
        next(one.steps())
    assert (one.row, one.frames) == (2, 0)


def test_a_picture_becomes_the_first_frame(client, tmp_path):
    plain, given = (
        frames_of(client, path, tmp_path)
        for image in (None, text64(png((210, 40, 40))))
        for path in [client.start(**SMALL, image=image, duration="1s")]
        if client.until(path, "done")
    )
    assert given[0].mean((0, 1)).astype(int) == pytest.approx([210, 40, 40], abs=40)
    assert plain[0].mean((0, 1))[0] < 160


def everything(folder: pathlib.Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("name", HOSTILE)
def test_harm_is_refused_and_leaves_nothing(client, demo, name):
    before, here = everything(demo.folder.parent), set(pathlib.Path.cwd().iterdir())
    error = client("POST", "/api/streams", HOSTILE[name])["error"]
    assert 400 <= client.status < 500, error
    assert error["what"] and set(error) == {"what", "why", "fix", "code"}
    assert str(demo.folder) not in json.dumps(error) and "passwd" not in error["what"]
    assert everything(demo.folder.parent) == before
    assert set(pathlib.Path.cwd().iterdir()) == here
    assert client("GET", "/api/about")["model"] == "nano"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/streams/../../etc/passwd", 404),
        ("GET", "/..%2f..%2fdemo.py", 404),
        ("GET", "/%2e%2e/demo.py", 404),
        ("GET", "/api/galleries/x/..%2f..%2f/video.mp4", 404),
        ("GET", f"/api/streams/{'0' * 32}", 404),
        ("GET", "/api/streams/%00", 404),
        ("DELETE", f"/api/galleries/{'0' * 32}", 404),
        ("PUT", "/api/about", 405),
        ("GET", "/nothing", 404),
    ],
)
def test_wrong_addresses_are_told_as_json(client, method, path, status):
    error = client(method, path)["error"]
    assert client.status == status and set(error) == {"what", "why", "fix", "code"}


@pytest.mark.parametrize("query", ["played=nan", "played=-1", "played=x", "played=1e300"])
def test_wrong_queries_are_refused(client, query):
    path = client.start(**SMALL, duration="1s")
    assert "played" in client("GET", f"{path}?{query}")["error"]["what"]
    assert client.status == 422
    client.until(path, "done")


def test_a_page_of_another_origin_gets_nothing(address):
    """It may send forms, and ask under a name of its own that leads here."""
    form = Client(address, 1, **{"Content-Type": "text/plain"})
    assert "content type" in form("POST", "/api/streams", SMALL)["error"]["what"]
    assert form.status == 415
    renamed = Client(address, Host="evil.example")
    assert "evil.example" in renamed("GET", "/api/about")["error"]["what"]
    assert renamed.status == 403


def test_a_key_is_needed_where_there_is_one(demo):
    key = "a key of enough characters"
    with shown(demo, (key,)) as address:
        stranger, guest = Client(address), Client(address, Authorization=f"Bearer {key}")
        assert b'property="og:title" content="jvdm"' in stranger("GET", "/")
        for method, path in (("GET", "/api/about"), ("POST", "/api/streams")):
            assert "key" in stranger(method, path, SMALL)["error"]["what"]
            assert stranger.status == 401
        assert guest("GET", "/api/about")["limits"]["prompt"] == 300


def test_a_stream_of_another_system(client, tmp_path):
    """The wave of the plain system is of lag 4; the system `wave` has a lag of 2."""
    asked = {**SMALL, "duration": "3s"}
    rows, films = {}, {}
    for system in (None, "plain", "wave", "autoregressive"):
        path = client.start(**asked, system=system)
        rows[system] = [row["levels"] for row in client.until(path, "done")["rows"]]
        films[system] = frames_of(client, path, tmp_path).astype(int)
    np.testing.assert_array_equal(films[None], films["plain"])
    assert rows[None] == rows["plain"]
    for one, other in (("plain", "wave"), ("plain", "autoregressive"), ("wave", "autoregressive")):
        assert rows[one] != rows[other] and abs(films[one] - films[other]).mean() > 0.5


def test_only_so_many_films_are_kept_and_no_thread_stays(client, demo):
    paths, threads = [], []
    for _ in range(12):
        paths.append(client.start(**SMALL, duration="1s"))
        client.until(paths[-1], "done")
        threads.append(threading.active_count())
    client("GET", paths[0])
    assert client.status == 404
    assert len(list((demo.folder / "watched").iterdir())) <= 9
    assert max(threads[6:]) <= max(threads[:6]) + 1


def test_an_error_that_nobody_foresaw_ends_the_stream_alone(client, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("a fault")

    with monkeypatch.context() as patch:
        patch.setattr(demo_streams, "LIVE_WRITERS", {".mp4": broken})
        failed = client.until(client.start(**SMALL, duration="1s"), "failed")
    assert failed["error"]["code"] == "JvdmError" and "RuntimeError" in failed["error"]["what"]
    client.until(client.start(**SMALL, duration="1s"), "done")


def test_a_full_disk_is_said_without_where_it_is(client, demo, monkeypatch):
    def full(path, *_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(demo_streams, "LIVE_WRITERS", {".mp4": full})
    error = client.until(client.start(**SMALL, duration="1s"), "failed")["error"]
    assert error["why"] == "No space left on device"
    assert str(demo.folder) not in json.dumps(error)


def command(*arguments: str, folder: pathlib.Path) -> subprocess.Popen:
    named = ["-m", "jvdm", "demo", "--weights", "nano", "--port", "0", "--workdir", str(folder)]
    return subprocess.Popen(
        [sys.executable, *named, *arguments], stderr=subprocess.PIPE, text=True, bufsize=1
    )


@pytest.mark.slow
def test_the_command_shows_the_page_until_it_is_stopped(tmp_path):
    (tmp_path / "watched" / "old").mkdir(parents=True)
    with command("--system", "wave", folder=tmp_path) as process:
        said = next(line for line in process.stderr or () if "open http://" in line)
        client = Client(said.split()[2])
        try:
            assert client("GET", "/api/about")["model"] == "nano"
            path = client.start(**SMALL, duration="40s")
            client.until(path, "running", query="?played=0", frames=1)
            assert len(list((tmp_path / "watched").iterdir())) == 1
        finally:
            process.send_signal(signal.SIGTERM)
        left = process.stderr.read() if process.stderr else ""
    assert process.returncode == 75 and "Traceback" not in left
    assert "goes on" not in left and "saved" not in left and "the next demo here removes" in left


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--host", "0.0.0.0"), "can be reached from other machines"),
        (("--max-batch", "4"), "--max-batch was given"),
        (("--grace-s", "5"), "--grace-s was given"),
        (("--max-body-megabytes", "99"), "0.001 to 16 are read"),
        (("--max-streams", "0"), "--max-streams is 0"),
    ],
)
def test_options_that_cannot_be_are_refused(arguments, said, capsys, tmp_path):
    assert cli.main(["demo", "--workdir", str(tmp_path), "--port", "0", *arguments]) == 2
    assert said in capsys.readouterr().err
