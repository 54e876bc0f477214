"""What the HTTP service and the demo share: who may come in, how much, and what errors look like.

Starlette and uvicorn (`pip install "jvdm[serve]"`) are imported when a server starts.
"""

import asyncio
import contextlib
import dataclasses
import hashlib
import hmac
import ipaddress
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jvdm.errors import ConfigError, DeviceMemoryError, JvdmError
from jvdm.files import probe_writable
from jvdm.options import LoadingOptions
from jvdm.serving.jobs import RETRY_S, Busy, Closing, Jobs, UnknownJob
from jvdm.serving.limits import Limits
from jvdm.serving.tasks import error_data
from jvdm.stopping import StopRequest

API_KEYS = "JVDM_API_KEYS"
"""Environment variable with keys, one word each; `ps` shows those of the command line."""
BODY_S = 30.0
"""Seconds in which the body of a request has to come."""
MOST_AT_ONCE = 256
"""Requests that are answered at once; twice as many connections are held."""
OPEN = ("/health",)
"""Paths that need no key: probes of schedulers have none."""
VISITOR = b"x-visitor"
"""Header by which people behind one address, or with one key, tell themselves apart."""


class Refused(JvdmError):
    """A request that is not for this server.

    Args:
        status: Of HTTP.
        parts: What, why, fix.
    """

    def __init__(self, status: int, *parts: str) -> None:
        super().__init__(*parts)
        self.status = status


class Ends(NamedTuple):
    """What is said of a server that somebody stops.

    Attributes:
        saves: At once: what becomes of what runs.
        state: In the end: what has become of it.
        late: The same where a program was still being compiled, which cannot be stopped.
        fix: What to do then.
    """

    saves: str
    state: str
    late: str
    fix: str


class ServerEnded(JvdmError):
    """Requests are not answered any more, although nobody asked for it."""

    exit_code = 1


@dataclasses.dataclass(frozen=True)
class WebOptions(LoadingOptions, Limits):
    """What is loaded, who may use it, and how much of it."""

    host: str = "127.0.0.1"
    """Address that is listened on; one that others can reach needs a key."""
    api_key: tuple[str, ...] = ()
    """Who calls has to give one of these: `Authorization: Bearer KEY`. With several keys each is
    a client of its own. $JVDM_API_KEYS holds more; ps does not show these."""
    max_body_megabytes: float = 16.0
    """Size of a request; pictures in it are a third larger than their files."""
    grace_s: float = 20.0
    """Seconds in which what runs may finish after SIGTERM or Ctrl-C; its latents are saved then."""

    def validated(self) -> "WebOptions":
        """Returns these options.

        Raises:
            ConfigError: If a limit is not above 0, or a request may have more than can be read.
        """
        super().validated()
        if not 0.001 <= self.max_body_megabytes <= 16:
            what = f"--max-body-megabytes is {self.max_body_megabytes:g}"
            raise ConfigError(what, "0.001 to 16 are read", "leave it out")
        return self

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys.

        Raises:
            ConfigError: If one is too short to be a secret.
        """
        keys = (*self.api_key, *os.environ.get(API_KEYS, "").split())
        if any(len(key) < 16 for key in keys):
            fix = 'make one with python -c "import secrets; print(secrets.token_urlsafe(24))"'
            raise ConfigError("an API key has fewer than 16 characters", "it is guessed soon", fix)
        return keys


def listening(host: str, port: int, keys: Sequence[str]) -> socket.socket:
    """Returns the socket that is listened on; `port` 0 takes a free one.

    Raises:
        ConfigError: If it cannot be, or others could come in without a key.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port is {port}", "ports are 0 to 65535", "leave it out")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        fix = "use 127.0.0.1, or an address of this machine"
        raise ConfigError(f"--host is {host!r:.80}", f"no such address: {error}", fix) from error
    family, _, _, _, address = found[0]
    if not ipaddress.ip_address(address[0]).is_loopback and not keys:
        what = f"--host {host} can be reached from other machines"
        fix = f"give a key (${API_KEYS} or --api-key), or listen on 127.0.0.1"
        raise ConfigError(what, "everybody there could use this device", fix)
    try:
        return socket.create_server(address[:2], family=family, backlog=128)
    except OSError as error:
        what, why = f"{host}:{port} cannot be listened on", error.strerror or str(error)
        raise ConfigError(what, why, "choose another --port, or 0 for any") from error


def status_of(error: JvdmError) -> int:
    """Returns the status of HTTP that an error is answered with."""
    if isinstance(error, Refused):
        return error.status
    kinds = {Busy: 429, Closing: 503, UnknownJob: 404, ConfigError: 422, DeviceMemoryError: 422}
    found = [status for kind, status in kinds.items() if isinstance(error, kind)]
    return found[0] if found else 422 if type(error).__name__ == "ShapeError" else 500


def answer(data: Any, status: int = 200, **headers: str) -> Any:
    """Returns JSON data as a response of Starlette."""
    from starlette.responses import Response

    text = json.dumps(data, default=str)  # ASCII: what was asked for may hold half of a character
    return Response(text, status, headers, media_type="application/json")


def refusal(error: JvdmError) -> Any:
    """Returns the response that tells an error: what, why, fix and code."""
    status, headers = status_of(error), {}
    if status in (429, 503):
        headers["Retry-After"] = str(RETRY_S)
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return answer({"error": error_data(error)}, status, **headers)


def error_handlers() -> dict[Any, Any]:
    """Returns what tells the errors of an application of Starlette, as `refusal` does.

    A page at `/` says what there is.
    """
    from starlette.exceptions import HTTPException

    async def known(request: Any, error: Any) -> Any:
        return refusal(error)

    async def unknown(request: Any, error: Any) -> Any:
        what = f"{request.method} {request.url.path[:80]}"
        return refusal(Refused(error.status_code, what, error.detail, "GET / says what there is"))

    async def unforeseen(request: Any, error: Exception) -> Any:  # uvicorn writes it to the log
        what = f"the request failed with {type(error).__name__}"
        why = "this is a fault of the server; its log says more"
        return refusal(Refused(500, what, why, "report it"))

    return {JvdmError: known, HTTPException: unknown, Exception: unforeseen}


class Guard:
    """ASGI middleware: checks who comes, and tells every error as JSON.

    Without keys only this machine may come, and no page of a browser that is open on it: the name
    that it called must be that of this machine.

    Args:
        app: What it guards.
        keys: One of them has to be given, if there are any.
        names: What the server may be called where there are none.
    """

    def __init__(self, app: Any, keys: Sequence[str] = (), names: Sequence[str] = ()) -> None:
        self.app, self.keys = app, [key.encode() for key in keys]
        self.names = {"localhost", "127.0.0.1", "::1", *names}
        self._now = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def sending(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        self._now += 1
        try:
            if self._now > MOST_AT_ONCE:
                raise Refused(503, f"{self._now} requests came at once", "", "try again later")
            scope["client_key"] = f"{self._client(scope)} {_visitor(scope)}".strip()
            await self.app(scope, receive, sending)
        except JvdmError as error:
            if begun:
                raise
            await refusal(error)(scope, receive, send)
        finally:
            self._now -= 1

    def _client(self, scope: Any) -> str:
        """Returns whose turn a request takes: a key, or an address."""
        headers = dict(scope["headers"])
        address = (scope.get("client") or ("",))[0]
        if not self.keys:
            name = headers.get(b"host", b"").decode("latin-1").lower()
            name = name.rsplit(":", 1)[0] if not name.endswith("]") else name
            if name.strip("[]") not in self.names:
                what, why = f"the server was called {name!r:.80}", "it knows itself by other names"
                raise Refused(403, what, why, "call it 127.0.0.1")
            return address
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        given = given.strip() if scheme.lower() == b"bearer" else b""
        matches = [hmac.compare_digest(given, key) for key in self.keys]  # all: equal time
        if not any(matches) and scope["path"] not in OPEN:
            fix = "send the header Authorization: Bearer KEY"
            raise Refused(401, "no API key that is known here was given", "it is needed", fix)
        return hashlib.sha256(given).hexdigest()[:16] if len(self.keys) > 1 else address


def _visitor(scope: Any) -> str:
    """Returns who of a client it is, as they say: that divides its turns, and gives it no more."""
    given = dict(scope["headers"]).get(VISITOR, b"")
    return hashlib.sha256(given).hexdigest()[:16] if given else ""


async def body_of(request: Any, most: int) -> bytes:
    """Reads the body of a request, of no more than so many bytes.

    Raises:
        Refused: If it is larger, of which no more is read, or does not come.
    """
    from starlette.requests import ClientDisconnect

    stated = request.headers.get("content-length", "0")
    why, fix = f"{most:,} are read", "send smaller pictures"
    if stated.isdecimal() and int(stated) > most:
        raise Refused(413, f"the body has {stated[:20]} bytes", why, fix)
    parts, size = [], 0

    async def read() -> None:
        nonlocal size
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise Refused(413, "the body has more bytes", why, fix)
            parts.append(part)

    try:
        await asyncio.wait_for(read(), BODY_S)
    except TimeoutError as error:
        what = f"the body did not come in {BODY_S:g} s"
        raise Refused(408, what, "", "send it at once") from error
    except ClientDisconnect as error:  # nobody reads this
        raise Refused(400, "the body was cut off", "", "send it again") from error
    return b"".join(parts)


def server_of(app: Any) -> Any:
    """Returns the server of uvicorn that answers for an application of ASGI."""
    import uvicorn

    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,  # or who is here may say that they are somebody else
            lifespan="off",
            limit_concurrency=2 * MOST_AT_ONCE,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=5,
        )
    )


def run_until_stopped(
    app: Any,
    listener: socket.socket,
    jobs: Jobs,
    grace_s: float,
    said: Callable[[str], None],
    ends: Ends,
) -> None:
    """Answers requests until SIGTERM or Ctrl-C, then finishes or saves what runs.

    Args:
        app: Of ASGI.
        listener: From `listening`.
        jobs: What the app takes on.
        grace_s: Seconds in which what runs may finish.
        said: Gets the address when it is answered there.
        ends: What becomes of what runs, and what to do then.

    Raises:
        Preempted: After SIGTERM; `Interrupted` after Ctrl-C.
        ConfigError: If the server cannot start.
    """
    server = server_of(app)
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listener]}, name="jvdm-http", daemon=True
    )
    with StopRequest(ends.saves, ends.fix) as stop:
        stop.background(jobs.join)
        thread.start()
        host, port = listener.getsockname()[:2]
        said(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        with stop.later():
            while thread.is_alive() and not stop.requested:
                thread.join(0.2)
        stop.state = ends.state
        saved = jobs.close(grace_s)
        server.should_exit = True
        thread.join(10)
        if not saved:
            stop.state = ends.late
        if not stop.requested:
            raise ServerEnded("the server ended by itself", "its log says more", ends.fix)


@contextlib.contextmanager
def work_folder(folder: Path) -> Iterator[Path]:
    """Gives the folder of one server, which no other process uses meanwhile.

    Raises:
        ConfigError: If another one does, or nothing can be written there.
    """
    import fcntl

    folder = folder.expanduser().absolute()
    probe_writable(folder)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            what, why = f"--workdir {folder} is in use", "another server works there"
            raise ConfigError(what, why, "choose another folder") from error
        yield folder
