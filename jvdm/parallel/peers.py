"""The processes of a run in touch: which are missing, were lost, have failed or shall stop.

JAX's own service says none of it in words: where a process is missing it aborts the others, and
where one is lost they sit in a collective until a heartbeat is missed. So process 0 calls the roll
at the coordinator's address before JAX takes it, and every connection of the roll stays open.
"""

import contextlib
import ipaddress
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from jvdm.errors import ConfigError, DistributedError, MissingProcesses
from jvdm.stopping import StopRequest, ask

LOOPBACK_SECONDS = 60.0
"""Patience on this machine itself: its processes start together."""
_TRY_SECONDS = 0.2  # between two attempts to reach process 0
_BYE_SECONDS = 10.0  # that process 0 waits for those that are about to leave
_END_SECONDS = 300.0  # that it waits for those that were asked to stop: they may be compiling


class Place(NamedTuple):
    """Where a process stands.

    Attributes:
        address: `HOST:PORT` of the coordinator, which is process 0.
        count: Processes of the run.
        process: Which one this is, from 0.
    """

    address: str
    count: int
    process: int

    @property
    def host(self) -> str:
        """Host of the coordinator."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Port of the coordinator."""
        return int(self.address.rpartition(":")[2])


class Peers:
    """Connections of this process: process 0 has one to every other, those have one to it.

    Args:
        place: Where this process stands.
        connections: Connected sockets by the process at the other end.
        hosts: Names of all hosts, by process.
    """

    def __init__(
        self, place: Place, connections: dict[int, socket.socket], hosts: Sequence[str]
    ) -> None:
        self.place, self.hosts = place, tuple(hosts)
        self._connections, self._gone, self._closed = connections, set(), set()
        self._arrived: dict[str, set[int]] = {}
        self._open: set[str] = set()
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self.stopping = self._leaving = self._failing = False
        for process, connection in connections.items():
            connection.settimeout(None)
            threading.Thread(target=self._hear, args=(process, connection), daemon=True).start()

    def barrier(self, name: str) -> None:
        """Waits until all processes are at the barrier `name`, which is used once.

        Raises:
            KeyboardInterrupt: If others have left because all were asked to stop: a library may
                have swallowed what this process heard of it.
            DistributedError: If others have left for no known reason.
        """
        if self.place.process:
            self._tell({"at": name})
        else:
            self._arrive(0, name)
        with self._changed:
            self._changed.wait_for(lambda: name in self._open or self._gone)
        if name not in self._open:
            if StopRequest.asked:
                raise KeyboardInterrupt
            what = f"{', '.join(map(self.name, sorted(self._gone)))} left before {name!r}"
            raise DistributedError(what, "", "start the same command again")

    def stop(self) -> None:
        """Asks all other processes to stop, once, as if they had been sent SIGTERM."""
        if not self.stopping:
            self.stopping = True
            self._tell({"stop": True})

    def leave(self, failure: str = "", code: int = 0, stopped: bool = False) -> None:
        """Says that this process ends, and with which failure the others have to end.

        Args:
            failure: What failed; empty if nothing did.
            code: Exit code that goes with it.
            stopped: Whether all were asked to stop: process 0 then waits until they have ended.
        """
        self._leaving, mine = True, self.name(self.place.process)
        self._tell({"failed": f"{mine}: {failure}", "code": code} if failure else {"bye": True})
        if self.place.process == 0:  # JAX's service ends with this process, and aborts the others
            seconds, who = (_BYE_SECONDS, self._gone)
            if stopped:
                seconds, who = (_END_SECONDS, self._closed)
            with self._changed:
                self._changed.wait_for(lambda: who >= self._connections.keys(), seconds)

    def name(self, process: int) -> str:
        """Returns a process as people find it."""
        return f"process {process} of {self.place.count} on {self.hosts[process]}"

    def _tell(self, message: dict[str, Any], but: int | None = None) -> None:
        with self._sending:
            for process, connection in self._connections.items():
                if process != but:
                    with contextlib.suppress(OSError):  # its end is heard elsewhere
                        _send(connection, message)

    def _hear(self, process: int, connection: socket.socket) -> None:
        """Answers what the other end says, until it ends."""
        lost = {"failed": f"{self.name(process)} was lost: it ended without a word", "code": 1}
        last: dict[str, Any] = lost
        with contextlib.suppress(OSError), connection.makefile("rb") as lines:
            for line in lines:
                message = json.loads(line)
                if "at" in message:
                    self._arrive(process, message["at"])
                elif "open" in message:
                    self._set_open(message["open"])
                elif "stop" in message:
                    self._stop_here(process)
                elif "bye" in message:
                    last = message
                    self._note(self._gone, process)
                elif self.place.process:
                    last = message
                    break
                else:
                    last, self._failing = message, True
                    self._tell(message, but=process)
                    # JAX aborts whoever is still there when process 0 ends: that one first.
                    connection.settimeout(_BYE_SECONDS)
        self._note(self._gone, process)
        self._note(self._closed, process)
        if "failed" in last and not (last is lost and self._failing):
            self._end(last["failed"], last["code"], process)

    def _note(self, group: set[int], process: int) -> None:
        with self._changed:
            group.add(process)
            self._changed.notify_all()

    def _arrive(self, process: int, name: str) -> None:
        with self._changed:
            here = self._arrived.setdefault(name, set())
            here.add(process)
            complete = len(here) == self.place.count
        if complete:
            self._tell({"open": name})
            self._set_open(name)

    def _set_open(self, name: str) -> None:
        with self._changed:
            self._open.add(name)
            self._changed.notify_all()

    def _stop_here(self, teller: int) -> None:
        if not self.stopping:
            self.stopping = True
            self._tell({"stop": True}, but=teller)
            ask()

    def _end(self, why: str, code: int, teller: int) -> None:
        """Ends this process at once: it may sit in a collective for ever."""
        if self._leaving or self.stopping:
            return
        self._leaving = True
        self._tell({"failed": why, "code": code}, but=teller)
        fix = "; start the same command again: it goes on at the last checkpoint" * (code != 2)
        print(f"jvdm: {why}{fix}", file=sys.stderr, flush=True)
        os._exit(code)


def call_roll(place: Place, timeout_s: float) -> Peers:
    """Waits until all processes of a run are there, and connects them.

    Args:
        place: Where this process stands.
        timeout_s: How long to wait; on this machine itself not above `LOOPBACK_SECONDS`.

    Raises:
        MissingProcesses: If some did not come, by number.
        ConfigError: If two processes have the same number, or were told different counts.
    """
    alone = is_loopback(place.host)
    deadline = time.monotonic() + (min(timeout_s, LOOPBACK_SECONDS) if alone else timeout_s)
    return (_answer_roll if place.process else _hold_roll)(place, deadline)


def is_loopback(host: str) -> bool:
    """Whether a host's name leads to this machine itself and to no other one."""
    with contextlib.suppress(OSError):
        found = {ipaddress.ip_address(item[4][0]) for item in socket.getaddrinfo(host, None)}
        return all(address.is_loopback for address in found)
    return False


def _hold_roll(place: Place, deadline: float) -> Peers:
    """Process 0: lets the others connect, and tells them all what came of it."""
    hosts: dict[int, str] = {0: socket.gethostname()}
    connections: dict[int, socket.socket] = {}
    wrong = ""
    with _listening(place) as server:
        while len(hosts) < place.count and not wrong:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection, _ = server.accept()
                connection.settimeout(5.0)
                hello = json.loads(_line(connection))
                process, host, count = hello["process"], hello["host"], hello["count"]
            except TimeoutError:
                if time.monotonic() >= deadline:
                    break
                continue
            except (OSError, ValueError, KeyError, TypeError):
                continue  # whatever else looks at open ports
            if count != place.count:
                wrong = f"process {process} on {host} is one of {count}, process 0 of {place.count}"
            elif process in hosts or not 0 < process < count:
                wrong = f"process {process} is on {host} and on {hosts.get(process, 'none')}"
            connections[process if not wrong else -1] = connection
            hosts.setdefault(process, host)
    missing = sorted(set(range(place.count)) - hosts.keys())
    names = [hosts.get(process, "") for process in range(place.count)]
    answer = {"wrong": wrong, "missing": missing, "hosts": names}
    for connection in connections.values():
        with contextlib.suppress(OSError):
            _send(connection, answer)
    _check_roll(place, answer)
    return Peers(place, connections, names)


def _answer_roll(place: Place, deadline: float) -> Peers:
    """Any other process: reaches process 0 and waits for its answer."""
    hello = {"process": place.process, "host": socket.gethostname(), "count": place.count}
    while True:
        try:
            connection = socket.create_connection((place.host, place.port), timeout=5.0)
            _send(connection, hello)
            connection.settimeout(max(deadline - time.monotonic(), 0.0) + 10.0)
            answer = json.loads(_line(connection))
            break
        except (OSError, ValueError):
            if time.monotonic() > deadline:
                _check_roll(place, {"wrong": "", "missing": [0], "hosts": []})
            time.sleep(_TRY_SECONDS)
    _check_roll(place, answer)
    return Peers(place, {0: connection}, answer["hosts"])


def _check_roll(place: Place, answer: dict[str, Any]) -> None:
    if answer["wrong"]:
        fix = "give every process its own --process-id below the same --num-processes"
        raise ConfigError(answer["wrong"], "each process has one number", fix)
    if not answer["missing"]:
        return
    missing = ", ".join(map(str, answer["missing"]))
    there = [f"{i} on {host}" for i, host in enumerate(answer["hosts"]) if host]
    what = f"of {place.count} processes did not come to {place.address}: {missing}"
    why = f"there are {', '.join(there)}" if there else "nobody answers there"
    fix = "look at the logs of the missing ones, then start all again"
    if is_loopback(place.host):
        fix = f"{place.host} is every host's own: name process 0's host if there are several"
    raise MissingProcesses(what, why, fix)


@contextlib.contextmanager
def _listening(place: Place):
    """Listens at the coordinator's port, on all addresses as JAX does after it."""
    dual = socket.has_dualstack_ipv6()
    where = ("::" if dual else "0.0.0.0", place.port)
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        server = socket.create_server(
            where, family=family, backlog=place.count, dualstack_ipv6=dual
        )
    except OSError as error:
        what = f"port {place.port} of the coordinator {place.address} cannot be opened"
        why, fix = error.strerror or str(error), "choose another, as with JAX_COORDINATOR_PORT"
        raise DistributedError(what, why, fix) from error
    with server:
        yield server


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _line(connection: socket.socket) -> bytes:
    """Reads one line, and no byte of the next."""
    found = b""
    while not found.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte or len(found) > 65536:
            raise OSError("the other end has closed the connection")
        found += byte
    return found
