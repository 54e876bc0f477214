"""Repositories of a hub, which is a server on this machine; the client is that of Hugging Face."""

import hashlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from jvdm.weights.folder import EMBEDDED
from tests.weights.wan_folder import write_wan

pytest.importorskip("huggingface_hub")
COMMIT = "0123456789" * 4
LOAD = """
import sys, jvdm
for place in sys.argv[1:]:
    try:
        pipe = jvdm.load(place, dtype="float32", progress=False)
        print(type(pipe.system.model).__name__)
    except jvdm.JvdmError as error:
        print(error)
"""


class Hub(BaseHTTPRequestHandler):
    """What a hub answers to the client: what a repository has, and its files."""

    repositories: dict[str, Path] = {}
    asked: list[str] = []

    def do_GET(self):
        """Answers; HEAD is the same without the file."""
        path = urlsplit(self.path).path
        self.asked.append(f"{self.command} {path}")
        for name, folder in self.repositories.items():
            if path.startswith(f"/api/models/{name}"):
                files = [one for one in sorted(folder.rglob("*")) if one.is_file()]
                sizes = {str(one.relative_to(folder)): one.stat().st_size for one in files}
                tree = [
                    {"type": "file", "path": one, "size": sizes[one], "oid": ""} for one in sizes
                ]
                said = [{"rfilename": one, "size": sizes[one]} for one in sizes]
                whole = {"id": name, "sha": COMMIT, "siblings": said}
                return self.answer(json.dumps(tree if "/tree/" in path else whole))
            for revision in (COMMIT, "main"):
                start = f"/{name}/resolve/{revision}/"
                if path.startswith(start):
                    return self.answer((folder / path.removeprefix(start)).read_bytes())
        return self.answer("{}", 404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def answer(self, content, code=200, more=None):
        """Sends text or bytes."""
        content = content.encode() if isinstance(content, str) else content
        tag = hashlib.sha256(content).hexdigest()
        heads = {"Content-Length": len(content), "ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}
        self.send_response(code)
        for name, value in (heads | (more or {})).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format, *args):
        """Says nothing."""


@pytest.fixture
def hub(tmp_path):
    """A hub with a published folder, beside whose folders lie other versions, and one of ours."""
    published = write_wan(tmp_path / "hub/wan")
    (published / "other-version.safetensors").write_bytes(b"never fetched")
    (published / "assets").mkdir()
    (published / "assets/film.mp4").write_bytes(b"never fetched")
    own = tmp_path / "hub/nano"
    shutil.copytree(EMBEDDED / "nano", own, symlinks=False)
    Hub.repositories, Hub.asked = {"someone/wan": published, "someone/nano": own}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_repository_is_fetched_once_and_is_there_without_the_hub(hub, run_python, tmp_path):
    where = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path / "hf")}
    where |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
    asked = ("-c", LOAD, "someone/wan", "someone/nano", "someone/nothing")
    done = run_python(*asked, check=True, **where)
    wan, nano, nothing = done.stdout.strip().splitlines()
    assert (wan, nano) == ("WanDiT", "VideoDiT")
    assert "there is no folder someone/nothing" in nothing and "RepositoryNotFound" in nothing
    assert "hf download someone/nothing --local-dir FOLDER" in nothing
    assert done.stderr.count("fetching someone/") == 2
    kept = {path.name for path in (tmp_path / "hf").rglob("*")}
    assert {"model_index.json", "tokenizer.json", "model.json"} < kept
    assert not {"other-version.safetensors", "film.mp4"} & kept
    fetched = [one for one in Hub.asked if one.startswith("GET") and "/resolve/" in one]
    again = run_python(*asked[:-1], check=True, **where)
    assert again.stdout.split() == ["WanDiT", "VideoDiT"] and "fetching" not in again.stderr
    assert [one for one in Hub.asked if one.startswith("GET") and "/resolve/" in one] == fetched
    hub.shutdown()
    hub.server_close()
    alone = run_python(*asked, check=True, **where | {"HF_HUB_OFFLINE": "1"})
    assert alone.stdout.split()[:2] == ["WanDiT", "VideoDiT"]
    assert "there is no folder someone/nothing" in alone.stdout


def test_what_the_disk_has_no_room_for_is_not_fetched(hub, run_python, tmp_path):
    where = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path / "hf")}
    full = "import shutil; shutil.disk_usage = lambda place: (0, 0, 0, shutil)\n"
    full = full.replace("(0, 0, 0, shutil)", "type('', (), {'free': 5})")
    done = run_python("-c", full + LOAD, "someone/wan", check=True, HF_HUB_OFFLINE="0", **where)
    assert "someone/wan has 0.0 GB" in done.stdout and "HF_HUB_CACHE" in done.stdout
    assert not [one for one in Hub.asked if "/resolve/" in one]
