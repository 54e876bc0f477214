"""The gallery: systems side by side, over HTTP."""

import io

import numpy as np
import pytest
from PIL import Image

from jvdm.pipeline.request import request_of
from jvdm.serving import demo_streams
from jvdm.serving.demo import Demo
from jvdm.serving.gallery import Gallery
from jvdm.serving.limits import Limits
from jvdm.video import read_video
from tests.serving.demo_client import Client, shown, wait_until_free

pytest.importorskip("gradio", reason="the demo needs gradio")

PROMPT = "a large red ball rolls to the left"
SMALL = {"prompt": PROMPT, "seed": 3, "height": 16, "width": 16, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def demo(pipe, tmp_path_factory):
    made = Demo(pipe, tmp_path_factory.mktemp("demo"), Limits(max_streams=1))
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(demo):
    with shown(demo) as address:
        yield Client(address)


@pytest.fixture(scope="module")
def made(client):
    systems = ["plain", "wave", "image_to_video", "draft_attention"]
    gallery = client("POST", "/api/galleries", {**SMALL, "systems": systems})
    return client.until(f"/api/galleries/{gallery['id']}", "done")


def piece(made, name):
    return next(piece for piece in made["pieces"] if piece["system"] == name)


def test_every_system_has_its_video(client, made, pipe, tmp_path):
    pictures = {}
    for name, rows in (("plain", 2), ("wave", 6), ("draft_attention", 2)):
        one = piece(made, name)
        assert (one["state"], one["row"], one["of"], one["error"]) == ("done", rows, rows, None)
        assert {"text", "denoise", "decode", "save"} <= one["seconds"].keys()
        assert one["seconds"]["denoise"] > 0 and 0 < one["density"] <= 1
        files = {kind: client("GET", f"/{one['files']}/{kind}") for kind in ("video.mp4",)}
        (tmp_path / "video.mp4").write_bytes(files["video.mp4"])
        frames = read_video(tmp_path / "video.mp4").frames
        assert frames.shape == (9, 16, 16, 3)
        pictures[name] = frames.astype(int)
        for kind in ("frames.png", "matrix.png"):
            with Image.open(io.BytesIO(client("GET", f"/{one['files']}/{kind}"))) as image:
                height = image.height
        assert height == (rows + 1) * 8  # of the matrix: a cell of 8 pixels for each level
    alone = np.asarray(pipe(progress=False, **SMALL)).astype(int)
    assert abs(pictures["plain"] - alone).mean() < 4  # of H.264
    assert abs(pictures["plain"] - pictures["wave"]).mean() > 0.5


def test_a_system_that_needs_more_says_so_and_others_go_on(made):
    one = piece(made, "image_to_video")
    assert one["state"] == "failed" and "give image" in one["error"]["fix"]
    assert [p["state"] for p in made["pieces"]] == ["done", "done", "failed", "done"]


def test_those_that_are_offered_can_be_made(client, demo):
    offered = {system["name"]: system for system in client("GET", "/api/about")["systems"]}
    assert {"plain", "wave", "window_attention"} <= offered.keys()
    assert not {"image_to_video", "sdedit"} & offered.keys()
    assert offered["plain"]["usual"] and "Denoising wave" in offered["wave"]["title"]
    for name in offered:
        demo.systems[name].prepare(request_of(prompt=PROMPT))


@pytest.mark.parametrize(
    "systems", [None, [], "wave", [7], ["no_such"], ["../../x"], ["wave", "wave"], ["/etc/x.py"]]
)
def test_other_systems_are_refused(client, demo, systems):
    before = list(demo.folder.rglob("*"))
    error = client("POST", "/api/galleries", {**SMALL, "systems": systems})["error"]
    assert client.status == 422 and "system" in error["what"]
    assert list(demo.folder.rglob("*")) == before


@pytest.mark.parametrize("file", ["plain/record.json", "plain/..", "image_to_video/video.mp4"])
def test_no_other_file_is_given(client, made, file):
    assert client("GET", f"/api/galleries/{made['id']}/{file}")["error"]["what"]
    assert client.status == 404


def test_cancel_ends_it_after_a_row(client, demo):
    systems = ["plain", "wave", "autoregressive"]
    asked = {**SMALL, "num_inference_steps": 200, "systems": systems}
    path = f"/api/galleries/{client('POST', '/api/galleries', asked)['id']}"
    while client("GET", path)["pieces"][0]["row"] < 1:
        pass
    client("DELETE", path)
    ended = client.until(path, "cancelled")
    assert {piece["state"] for piece in ended["pieces"]} == {"cancelled"}
    assert 1 <= ended["pieces"][0]["row"] < 200
    wait_until_free(demo)


def test_a_gallery_that_nobody_watches_ends(client, demo):
    asked = {**SMALL, "num_inference_steps": 200, "systems": ["plain", "wave", "autoregressive"]}
    path = f"/api/galleries/{client('POST', '/api/galleries', asked)['id']}"
    while client("GET", path)["pieces"][0]["row"] < 1:
        pass
    demo.find(Gallery, path.rpartition("/")[2])._asked -= demo_streams.LOST_S
    wait_until_free(demo)
    ended = client("GET", path)
    assert ended["state"] == "cancelled" and ended["pieces"][2]["row"] == 0


def test_no_file_of_the_server_is_run(client, tmp_path):
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    asked = {**SMALL, "systems": [str(tmp_path / "mine.py")]}
    assert "system" in client("POST", "/api/galleries", asked)["error"]["what"]
    assert client.status == 422 and not (tmp_path / "ran").exists()
