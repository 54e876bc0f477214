"""The door: addresses, keys, names, bodies, and a server that ends by itself."""

import asyncio
import ipaddress
import json
import socket

import pytest

import jvdm
from jvdm.serving import web
from jvdm.serving.demo import DemoOptions
from jvdm.serving.jobs import Jobs
from jvdm.serving.serve import ENDS, ServeOptions

KEYS = ("the-first-key-of-this", "the-second-key-of-this")


def answered(guard, path="/", client="10.0.0.1", **headers):
    """Returns status and body of what an application of ASGI answers, and the scope it saw."""
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "path": path, "headers": raw, "client": (client, 1)}
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"], sent[1]["body"], scope


async def inside(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"in"})


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1", 200),
        ("[::1]:8000", 200),
        ("LOCALHOST", 200),
        ("box:8000", 200),
        ("evil.example:8000", 403),
        ("localhost.evil.example", 403),
        ("", 403),
    ],
)
def test_without_a_key_the_server_answers_to_its_own_names(host, status):
    assert answered(web.Guard(inside, names=("box",)), host=host)[0] == status


def test_a_key_is_needed_and_says_whose_turn_it_is():
    guard, seen = web.Guard(inside, KEYS), set()
    for key in KEYS:
        for scheme in ("Bearer", "bearer"):
            status, _, scope = answered(guard, authorization=f"{scheme} {key}")
            assert status == 200 and key not in scope["client_key"]
            seen.add(scope["client_key"])
    assert len(seen) == 2
    for wrong in (
        "",
        "Bearer ",
        f"Basic {KEYS[0]}",
        f"Bearer {KEYS[0]}x",
        f"Bearer {KEYS[0][:-1]}",
    ):
        status, body, _ = answered(guard, authorization=wrong)
        assert status == 401 and json.loads(body)["error"]["fix"]
    assert answered(guard, "/health")[0] == 200
    one = web.Guard(inside, KEYS[:1])
    addresses = [
        answered(one, client=address, authorization=f"Bearer {KEYS[0]}")[2]["client_key"]
        for address in ("10.0.0.1", "10.0.0.2")
    ]
    assert addresses == ["10.0.0.1", "10.0.0.2"]


def test_visitors_of_an_address_are_told_apart_and_say_nothing_of_the_address():
    guard, host = web.Guard(inside), {"host": "localhost"}
    names = [
        answered(guard, client=address, **host, **{"x-visitor": said})[2]["client_key"]
        for address, said in (("10.0.0.1", "b c"), ("10.0.0.1", "d"), ("10.0.0.2", "10.0.0.1 d"))
    ]
    assert [name.partition(" ")[0] for name in names] == ["10.0.0.1", "10.0.0.1", "10.0.0.2"]
    assert len(set(names)) == 3 and all(name.count(" ") == 1 for name in names)
    assert answered(guard, client="10.0.0.1", **host)[2]["client_key"] == "10.0.0.1"


def test_too_many_at_once_are_sent_away(monkeypatch):
    guard = web.Guard(inside)
    monkeypatch.setattr(web, "MOST_AT_ONCE", 0)
    assert answered(guard, host="localhost")[0] == 503
    monkeypatch.setattr(web, "MOST_AT_ONCE", 1)
    assert [answered(guard, host="localhost")[0] for _ in range(3)] == [200] * 3


@pytest.mark.parametrize(
    ("host", "port", "said"),
    [
        ("127.0.0.1", 70000, "--port is 70000"),
        ("no.such.host.invalid", 0, "no such address"),
        ("\ud800", 0, "no such address"),
        ("0.0.0.0", 0, "can be reached from other machines"),
        ("::", 0, "can be reached from other machines"),
    ],
)
def test_addresses_that_are_not_listened_on(host, port, said):
    with pytest.raises(jvdm.ConfigError, match=said):
        web.listening(host, port, ())


@pytest.mark.parametrize("options", [ServeOptions, DemoOptions])
def test_nobody_else_can_reach_it_unless_asked(options):
    with web.listening(options().host, 0, options().keys) as listener:
        port = listener.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), 5).close()
        others = [str(address[4][0]) for address in socket.getaddrinfo(socket.gethostname(), None)]
        for address in {one for one in others if not ipaddress.ip_address(one).is_loopback}:
            with pytest.raises(OSError):
                socket.create_connection((address, port), 5).close()
        assert ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def test_a_port_is_taken_once():
    with web.listening("localhost", 0, ()) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(jvdm.ConfigError, match=f"localhost:{port} cannot be listened on"):
            web.listening("localhost", port, ())
    with web.listening("0.0.0.0", 0, KEYS) as listener:
        assert listener.family == socket.AF_INET


def test_a_folder_has_one_server(tmp_path):
    with web.work_folder(tmp_path / "work") as folder:
        assert folder == tmp_path / "work"
        with (
            pytest.raises(jvdm.ConfigError, match="another server works there"),
            web.work_folder(folder),
        ):
            pass
    with web.work_folder(folder):
        pass


def test_a_server_that_ends_by_itself_is_no_success(pipe, tmp_path, monkeypatch):
    import uvicorn

    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    jobs = Jobs(pipe, tmp_path)
    with (
        web.listening("127.0.0.1", 0, ()) as listener,
        pytest.raises(web.ServerEnded, match="the server ended by itself") as caught,
    ):
        web.run_until_stopped(inside, listener, jobs, 0.0, lambda address: None, ENDS)
    assert caught.value.exit_code == 1 and not jobs.alive
