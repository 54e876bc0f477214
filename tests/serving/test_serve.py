"""The service under load, cancelled, attacked and stopped, with a client over the network."""

import base64
import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from jvdm import media
from jvdm.video import Video
from tests.serving.conftest import PROMPT, SMALL
from tests.serving.server import KEYS, Server

LONG = {"height": 128, "width": 128, "num_frames": 9, "num_inference_steps": 200}
REQUESTS = 200
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def server(folder):
    limits = ("--keep-jobs", "40", "--max-waiting-each", "8", "--max-body-megabytes", "2")
    with Server(folder, *limits) as server:
        yield server


def film(folder, frames=9):
    clip = np.zeros((frames, 16, 16, 3), np.uint8)
    return Video(clip, 6.0).save(folder / "film.mp4").read_bytes()


def in_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def test_two_hundred_requests_lose_nothing_and_leave_nothing(server, folder):
    done, used, lock = [], {}, threading.Lock()

    def client(number):
        for turn in range(REQUESTS // 8):
            asked = {
                "prompt": PROMPT,
                "seed": 1000 * number + turn,
                **SMALL,
                "num_inference_steps": 1,
            }
            while (answer := server.ask("POST", "/v1/videos", asked, number % 4))[0] == 429:
                assert answer[1]["error"]["code"] == "Busy"
                time.sleep(0.05)
            assert answer[0] == 202, answer
            name = answer[1]["id"]
            ended = server.until(name)
            assert ended["state"] == "done" and ended["progress"] == 1, ended
            status, content = server.ask("GET", f"/v1/videos/{name}/content")
            assert status == 200 and content[4:8] == b"ftyp"
            with lock:
                done.append(name)
                if len(done) in (REQUESTS // 2, REQUESTS):
                    used[len(done)] = server.used()

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(client, number) for number in range(8)]:
            future.result()
    assert len(set(done)) == REQUESTS
    found = server.metrics()
    assert found['jvdm_ended_total{state="done"}'] == REQUESTS
    calls = {name: count for name, count in found.items() if name.startswith("jvdm_calls_total")}
    assert sum(int(name.split('"')[1]) * count for name, count in calls.items()) == REQUESTS
    assert sum(calls.values()) < REQUESTS / 1.5  # batches were formed
    assert found['jvdm_jobs{state="done"}'] <= 40
    assert len([path for path in (folder / "work").iterdir() if path.is_dir()]) <= 41
    (memory, files, threads), after = used[REQUESTS // 2], used[REQUESTS]
    assert after[0] < memory + 40_000 and after[1] <= files + 8 and after[2] <= threads + 4


def test_a_job_is_cancelled_while_it_runs_and_while_it_waits(server):
    runs = server.post(prompt=PROMPT, **LONG)
    waits = server.post(prompt=PROMPT, **LONG, guidance_scale=1.0)
    assert server.until(runs, ("running",))["ahead"] == 0
    status, answer = server.ask("POST", f"/v1/videos/{waits}/cancel")
    assert (status, answer["state"], answer["row"]) == (200, "cancelled", 0)
    while server.status(runs)["row"] < 2:
        time.sleep(0.01)
    with ThreadPoolExecutor(8) as pool:  # at once, and again
        path = f"/v1/videos/{runs}/cancel"
        answers = list(pool.map(lambda _: server.ask("POST", path), range(8)))
    assert [status for status, _ in answers] == [200] * 8
    ended = server.until(runs)
    assert ended["state"] == "cancelled" and 2 <= ended["row"] < ended["rows"] == 200
    assert ended["error"]["code"] == "Cancelled"
    assert server.ask("GET", f"/v1/videos/{runs}/latents")[0] == 200
    assert server.ask("GET", f"/v1/videos/{runs}/record")[1]["status"] == "interrupted"
    assert server.ask("GET", f"/v1/videos/{runs}/content")[0] == 409
    assert server.until(server.post(prompt=PROMPT, **SMALL))["state"] == "done"


def test_what_is_deleted_is_gone(server, folder):
    ended = server.post(prompt=PROMPT, **SMALL)
    server.until(ended)
    runs = server.post(prompt=PROMPT, **LONG)
    server.until(runs, ("running",))
    for name in (ended, runs):
        assert server.ask("DELETE", f"/v1/videos/{name}")[0] == 200
    end = time.monotonic() + 30
    while server.ask("GET", f"/v1/videos/{runs}")[0] == 200 and time.monotonic() < end:
        time.sleep(0.02)
    for name in (ended, runs):
        assert server.ask("GET", f"/v1/videos/{name}")[0] == 404
        assert not (folder / "work" / name).exists()


def test_a_record_makes_the_video_again(server, folder, tmp_path, run_python):
    name = server.post(prompt=PROMPT, seed=7, num_videos=2, **SMALL)
    assert server.until(name)["videos"] == 2
    _, record = server.ask("GET", f"/v1/videos/{name}/record?index=1")
    assert str(folder) not in json.dumps(record)
    assert record["settings"]["seed"] == 7 and record["settings"]["index"] == 1
    (tmp_path / "record.json").write_text(json.dumps(record))
    output = ("--output", tmp_path / "again")
    run_python("-m", "jvdm", "generate", "--like", tmp_path / "record.json", *output, check=True)
    again = json.loads(next((tmp_path / "again").glob("*.json")).read_text())
    assert again["sha256"]["frames"] == record["sha256"]["frames"]
    assert server.ask("GET", f"/v1/videos/{name}/content?index=2")[0] == 404


def hostile(tmp_path):
    """Bodies that cannot be used, with the status that says so and a word of the reason."""
    cut = in_base64(film(tmp_path)[:300])
    picture = in_base64(b"\x89PNG\r\n\x1a\n" + bytes(100))
    return [
        (b"", 400, "JSON"),
        (b"\xff\xfe\x00", 400, "JSON"),
        (b"[" * 100_000, 400, "deep"),
        (b'{"prompt": 1, "prompt": 2}', 400, "prompt"),
        ([PROMPT], 400, "object"),
        ({}, 422, "no prompt"),
        ({"prompt": None}, 422, "no prompt"),
        ({"prompt": ""}, 422, "says nothing"),
        ({"prompt": " \n"}, 422, "says nothing"),
        ({"prompt": ["a", "b"]}, 422, "must be text"),
        ({"prompt": {"a": 1}}, 422, "must be text"),
        ({"prompt": "x" * 1_000_000}, 422, "characters of prompt is 1000000"),
        ({"prompt": "\ud800"}, 422, "half of a character"),
        ({"prompt": PROMPT, "prmpt": 1}, 422, "did you mean prompt"),
        ({"prompt": PROMPT, "latents": [1]}, 422, "no such setting"),
        ({"prompt": PROMPT, "../../x": 1}, 422, "no such setting"),
        ({"prompt": PROMPT, "height": "64"}, 422, "height"),
        ({"prompt": PROMPT, "height": 17}, 422, "17"),
        ({"prompt": PROMPT, "height": -16}, 422, "-16"),
        ({"prompt": PROMPT, "height": 2**40}, 422, "megapixels"),
        ({"prompt": PROMPT, "num_frames": 10**9}, 422, "512"),
        ({"prompt": PROMPT, "duration": "9h"}, 422, "512"),
        ({"prompt": PROMPT, "num_inference_steps": 10**9}, 422, "200"),
        ({"prompt": PROMPT, "num_videos": 10**9}, 422, "4"),
        ({"prompt": PROMPT, "num_videos": 0}, 422, "num_videos"),
        ({"prompt": PROMPT, "seed": float("nan")}, 422, "seed"),
        ({"prompt": PROMPT, "guidance_scale": float("nan")}, 422, "finite"),
        ({"prompt": PROMPT, "fps": float("inf")}, 422, "fps"),
        ({"prompt": PROMPT, "switch": {str(i): "a" for i in range(99)}}, 422, "switch"),
        ({"prompt": PROMPT, "image": "/etc/passwd"}, 422, "base64"),
        ({"prompt": PROMPT, "image": "../../etc/passwd"}, 422, "base64"),
        ({"prompt": PROMPT, "image": {"path": "/etc/passwd"}}, 422, "base64"),
        ({"prompt": PROMPT, "image": ""}, 422, "image"),
        ({"prompt": PROMPT, "image": picture}, 422, "picture"),
        ({"prompt": PROMPT, "video": in_base64(b"#EXTM3U\n/etc/passwd\n")}, 422, "first bytes"),
        (
            {"prompt": PROMPT, "video": in_base64(b"ffconcat version 1.0\nfile x")},
            422,
            "first bytes",
        ),
        ({"prompt": PROMPT, "video": cut}, 422, "video"),
        (json.dumps({"prompt": PROMPT, "image": "A" * 3_000_000}).encode(), 413, "bytes"),
    ]


def test_what_cannot_be_used_is_refused_and_the_server_lives(server, folder, tmp_path):
    before = sorted(path.name for path in (folder / "work").iterdir())
    for body, wanted, word in hostile(tmp_path):
        status, answer = server.ask("POST", "/v1/videos", body)
        assert status == wanted, (str(body)[:80], answer)
        error = answer["error"]
        assert set(error) == {"what", "why", "fix", "code"}
        said = json.dumps(error)
        assert word in said and str(folder) not in said and len(said) < 8000, said
        assert server.ask("GET", "/health", key=None)[0] == 200
    assert sorted(path.name for path in (folder / "work").iterdir()) == before
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["elsewhere", "work"]
    assert not list((folder / "elsewhere").iterdir())


@pytest.mark.parametrize(
    ("method", "path", "wanted"),
    [
        ("GET", "/v1/videos/../../etc/passwd", 404),
        ("GET", "/v1/videos/..%2f..%2fetc%2fpasswd/content", 404),
        ("GET", f"/v1/videos/{'0' * 32}", 404),
        ("DELETE", f"/v1/videos/{'0' * 32}", 404),
        ("POST", f"/v1/videos/{'0' * 32}/cancel", 404),
        ("PUT", "/v1/videos", 405),
        ("GET", "/v1/videos/" + "a" * 20_000, 404),
    ],
)
def test_paths_that_lead_nowhere(server, method, path, wanted):
    status, answer = server.ask(method, path)
    assert status == wanted and answer["error"]["what"]


def test_who_has_no_key_comes_no_further(server):
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Bearer {KEYS[0][:-1]}"},
    ):
        for path in ("/v1/videos/x", "/metrics", "/"):
            status, answer = server.ask("GET", path, key=None, **headers)
            assert status == 401 and answer["error"]["code"] == "Refused"
    assert server.ask("GET", "/health", key=None)[0] == 200
    status, answer = server.ask("POST", "/v1/videos", b"x", Content_Type="text/plain")
    assert status == 415 and "application/json" in answer["error"]["fix"]


def test_a_body_that_is_cut_off_harms_nobody(server):
    for _ in range(3):
        with socket.create_connection((server.host, server.port), 10) as connection:
            head = f"POST /v1/videos HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEYS[0]}\r\n"
            head += "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
            connection.sendall(head.encode())
    assert server.ask("GET", "/health")[0] == 200
    assert "Traceback" not in "".join(server.said)


def test_a_large_body_is_refused_before_it_comes(server):
    with socket.create_connection((server.host, server.port), 10) as connection:
        head = f"POST /v1/videos HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEYS[0]}\r\n"
        head += "Content-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n{"
        connection.sendall(head.encode())
        assert b" 413 " in connection.recv(4096).partition(b"\r\n")[0]
    assert server.ask("GET", "/health")[0] == 200


def test_a_picture_begins_the_video(server, tmp_path):
    media.write_png(tmp_path / "p.png", np.full((16, 16, 3), 200, np.uint8))
    content = "data:image/png;base64," + in_base64((tmp_path / "p.png").read_bytes())
    name = server.post(prompt=PROMPT, image=content, **{**SMALL, "num_frames": 9})
    assert server.until(name)["state"] == "done"
    _, record = server.ask("GET", f"/v1/videos/{name}/record")
    assert record["settings"]["image"] == "image.png" and record["settings"]["inputs"]["image"]


def test_a_stopped_server_loses_nothing(tmp_path, run_python):
    with Server(tmp_path, "--grace-s", "0", keys=()) as server:
        ended = server.post(prompt=PROMPT, **SMALL)
        server.until(ended)
        runs = server.post(prompt=PROMPT, seed=3, **{**LONG, "num_inference_steps": 80})
        waits = server.post(prompt=PROMPT, seed=4, **SMALL)
        while server.status(runs)["row"] < 2:
            time.sleep(0.01)
        assert server.ask("GET", "/health", Host="evil.example")[0] == 403
        assert server.stop() == 75, server.said
    latents = tmp_path / "work" / runs / "video_0.latents.safetensors"
    run_python("-m", "jvdm", "decode", latents, "--output", tmp_path / "partial.mp4", check=True)
    with Server(tmp_path, keys=()) as server:
        assert server.status(ended)["state"] == "done"
        assert server.ask("GET", f"/v1/videos/{ended}/content")[0] == 200
        assert server.until(runs)["state"] == server.until(waits)["state"] == "done"
        _, record = server.ask("GET", f"/v1/videos/{runs}/record")
        assert (record["status"], record["settings"]["seed"]) == ("done", 3)
        assert server.stop(signal.SIGINT) == 130, server.said


def test_a_server_that_others_reach_needs_a_key(tmp_path, run_python):
    arguments = ("-m", "jvdm", "serve", "--weights", "nano", "--workdir", tmp_path, "--port", "0")
    found = run_python(*arguments, "--host", "0.0.0.0", JVDM_API_KEYS="")
    assert found.returncode == 2 and "can be reached from other machines" in found.stderr
    found = run_python(*arguments, "--api-key", "short")
    assert found.returncode == 2 and "fewer than 16 characters" in found.stderr
