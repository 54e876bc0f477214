"""The demo on a free port of this machine, and who asks it."""

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

from jvdm.serving.demo import Demo
from jvdm.serving.demo_pages import app_of
from jvdm.serving.web import listening, server_of

ENDED = ("done", "failed", "cancelled")


class Client:
    """Asks for JSON, and for bytes where there is no JSON; `status` is that of the last answer.

    Args:
        address: Of the demo.
        place: Last number of the address of the loopback that it asks from, by which clients are
            told apart.
        headers: Of its requests.
    """

    def __init__(self, address: str, place: int = 1, **headers: str) -> None:
        self.address, self.status, self.place = address, 0, place
        self.headers = {"Content-Type": "application/json", **headers}

    def __call__(self, method: str, path: str, body: Any = None) -> Any:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        host, source = self.address.removeprefix("http://"), (f"127.0.0.{self.place}", 0)
        connection = http.client.HTTPConnection(host, timeout=60, source_address=source)
        with contextlib.closing(connection):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # too long: see below
                sent = content if method == "POST" else None
                connection.request(method, path, sent, self.headers)
            answer = connection.getresponse()
            self.status, content = answer.status, answer.read()
        kind = answer.headers["content-type"]
        return json.loads(content) if "json" in kind else content

    def start(self, **settings: Any) -> str:
        """Begins a stream and returns its path."""
        stream = self("POST", "/api/streams", settings)
        assert self.status == 200, stream
        return f"/api/streams/{stream['id']}"

    def end(self, *paths: str) -> None:
        """Cancels streams, and waits until they have ended."""
        for path in paths:
            self("DELETE", path)
            self.until(path, *ENDED)

    def until(self, path: str, *states: str, query: str = "", frames: int = 0) -> Any:
        """Asks until it is in one of the states, and has so many frames."""
        end = time.monotonic() + 120
        while time.monotonic() < end:
            now = self("GET", path + query)
            if now["state"] in states and now.get("frames", 0) >= frames:
                return now
            assert now["state"] not in ENDED, now
            time.sleep(0.02)
        raise AssertionError(now)


def wait_until_free(demo: Demo) -> None:
    """Waits until the device holds no stream and no gallery."""
    end = time.monotonic() + 30
    while demo.jobs.counts()["streams"]:
        assert time.monotonic() < end
        time.sleep(0.02)


def shown(demo: Demo, keys: tuple[str, ...] = ()) -> contextlib.AbstractContextManager[str]:
    """Serves the demo and gives its address."""
    return served(app_of(demo, keys))


@contextlib.contextmanager
def served(app: Any) -> Iterator[str]:
    """Serves an application of ASGI on this machine alone, and gives its address."""
    listener = listening("127.0.0.1", 0, ())
    server = server_of(app)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
