"""The controls of the demo: of Gradio there is a page, and nothing else; it asks nobody."""

import fnmatch
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import tomllib
from typing import Any

import pytest

from jvdm import cli
from jvdm.serving.web import error_handlers
from tests.serving.demo_client import Client, served

controls = pytest.importorskip("jvdm.serving.controls", reason="the demo needs gradio")

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def address():
    from starlette.applications import Starlette

    with served(Starlette(routes=controls.routes(), exception_handlers=error_handlers())) as where:
        yield where


@pytest.fixture
def client(address):
    return Client(address)


def paths_of(routes: Any) -> set[tuple[str, str]]:
    """Returns methods and addresses of an application, and of those in it."""
    found = set()
    for route in routes:
        inner = getattr(route, "original_router", route)  # one that FastAPI includes
        found |= paths_of(getattr(inner, "routes", None) or ())
        found |= {(method, route.path) for method in getattr(route, "methods", None) or ()}
    return found


def test_gradio_answers_for_its_page_alone(client):
    """Of its uploads, files, proxy, queue and all other routes none is there."""
    found = paths_of(controls.Shown().app.routes)
    assert len(found) > 60 and ("POST", "/gradio_api/upload") in found
    shown = {("GET", path) for path in controls.SHOWN}
    hidden = {
        (method, re.sub(r"\{[^}]*\}", "x", path))
        for method, path in found - shown
        if not path.startswith(("/assets/", "/static/")) and method != "HEAD"
    }
    hidden |= {("GET", f"/gradio_api/file={path}") for path in ("/etc/passwd", __file__)}
    hidden |= {("GET", f"/{name}/..%2f..%2fshare.html") for name in controls.FILES}
    for method, path in sorted(hidden):
        error = client(method, path, {"data": []})["error"]
        assert client.status in (404, 405) and set(error) == {"what", "why", "fix", "code"}, path


def test_the_page_is_the_same_whatever_a_request_says_of_itself(client, address):
    page, host = client("GET", "/"), address.removeprefix("http://")
    said = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "evil", "Cookie": "a=b"}
    other = Client(address, 1, **said, **{"X-Forwarded-Prefix": "/evil"})
    assert other("GET", "/?deep_link=../../x&__theme=dark&view=api") == page
    assert other.status == 200 and host.encode() in page


def test_gradio_asks_nobody_for_anything(tmp_path):
    code = """import sys, threading
asked = []
def note(event, given):
    if event in ("socket.connect", "socket.getaddrinfo"):
        asked.append((event, str(given)))
sys.addaudithook(note)
from jvdm.serving.controls import routes
routes()
for thread in threading.enumerate():
    if thread is not threading.current_thread():
        thread.join(5)
print(asked)"""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GRADIO")}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
    made = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert made.stdout.strip() == "[]", made.stdout + made.stderr
    assert not list(tmp_path.iterdir())


def test_without_gradio_the_line_that_installs_it_is_said(monkeypatch, capsys, root, tmp_path):
    there = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name != "gradio" and there(name))
    asked = ["--weights", "no-such-weights", "--port", "0", "--workdir", str(tmp_path)]
    assert cli.main(["demo", *asked]) == 2
    said = capsys.readouterr().err
    assert "gradio is not installed" in said and 'pip install "jvdm[demo]"' in said
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert any(line.startswith("gradio") for line in extras["optional-dependencies"]["demo"])


def test_the_files_of_the_page_are_there(client):
    page = client("GET", "/").decode()
    for name in ("style.css", "stream.js", "gallery.js"):
        assert name in page and client("GET", f"/{name}") and client.status == 200


def test_the_page_is_part_of_the_package(root):
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["jvdm.serving"]
    for path in controls.PAGE.iterdir():
        assert any(fnmatch.fnmatch(f"page/{path.name}", pattern) for pattern in patterns), path
