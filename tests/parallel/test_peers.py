"""The roll call: who is missing is named everywhere, and what is wrong is refused."""

import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from jvdm.errors import ConfigError, DistributedError, JvdmError, MissingProcesses
from jvdm.parallel import peers, processes
from jvdm.parallel.peers import Place, call_roll
from jvdm.stopping import StopRequest
from tests.parallel.several import free_port


def call(*places, timeout_s=20.0) -> list[Any]:
    """Lets threads stand for processes; returns what each one gets or is told."""

    def one(place):
        try:
            return call_roll(place, timeout_s)
        except JvdmError as error:
            return error

    with ThreadPoolExecutor(len(places)) as pool:
        return list(pool.map(one, places))


def places(count, *numbers):
    address = f"127.0.0.1:{free_port()}"
    return [Place(address, count, number) for number in numbers or range(count)]


def test_all_meet_and_wait_for_each_other():
    company = call(*places(4))
    assert all(one.hosts == (socket.gethostname(),) * 4 for one in company)
    passed = []

    def goes(one):
        one.barrier("first")
        passed.append(one.place.process)

    threads = [threading.Thread(target=goes, args=(one,)) for one in company]
    for thread in threads[1:]:
        thread.start()
    threading.Event().wait(0.2)
    assert not passed
    threads[0].start()
    for thread in threads:
        thread.join(10)
    assert sorted(passed) == [0, 1, 2, 3]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda one: one.leave(), company))


def test_missing_ones_are_named_in_all_that_came():
    for error in call(*places(5, 0, 2, 4), timeout_s=0.7):
        assert isinstance(error, MissingProcesses) and error.exit_code == 75
        here = socket.gethostname()
        assert f": 1, 3; there are 0 on {here}, 2 on {here}, 4 on {here}" in str(error)
        assert "every host's own" in error.fix


def test_a_missing_first_one_is_named():
    (error,) = call(*places(2, 1), timeout_s=0.4)
    assert isinstance(error, MissingProcesses) and "come to 127.0.0.1" in error.what
    assert error.what.endswith(": 0") and "nobody answers" in error.why


def test_two_of_one_number_or_of_other_counts_are_refused_in_all():
    first, second, again = places(3, 0, 1, 1)
    told = call(first, second, again)
    assert any("process 1 is on" in str(error) for error in told)
    first, second = places(2)
    told = call(first, second._replace(count=3))
    assert all(isinstance(error, ConfigError) for error in told)
    assert all("is one of 3, process 0 of 2" in str(error) for error in told)


def test_what_looks_at_open_ports_is_sent_away():
    first, second = places(2)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(call_roll, first, 20.0)
        while True:
            try:
                stranger = socket.create_connection((first.host, first.port), 1.0)
                break
            except OSError:
                continue
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        company = [one.result, pool.submit(call_roll, second, 20.0).result]
        company = [result(20) for result in company]
        list(pool.map(lambda one: one.leave(), company))
    stranger.close()


def test_a_taken_port_is_named():
    (first,) = places(2, 0)
    with socket.create_server(("", first.port)):
        (error,) = call(first)
    assert isinstance(error, DistributedError) and str(first.port) in error.what


@pytest.fixture
def ended(monkeypatch):
    """What a process would have ended with."""
    codes, told = [], threading.Event()
    monkeypatch.setattr(peers.os, "_exit", lambda code: (codes.append(code), told.set()))
    codes.append(told)
    return codes


@pytest.mark.parametrize(("failure", "code"), [("wrong", 2), ("", 1)])
def test_a_failure_and_a_lost_process_end_the_others(ended, capfd, failure, code):
    first, second, third = call(*places(3))
    if failure:
        second.leave("ConfigError: the disk is full", code)
    for connection in second._connections.values():
        connection.shutdown(socket.SHUT_RDWR)  # what the system does when a process ends
    second._leaving = True
    assert ended[0].wait(10)
    threading.Event().wait(0.3)
    said = capfd.readouterr().err
    expected = "ConfigError: the disk is full" if failure else "was lost: it ended without a word"
    assert set(ended[1:]) == {code} and f"process 1 of 3 on {socket.gethostname()}" in said
    assert expected in said and ("start the same command again" in said) == (code != 2)
    del first, third


def test_a_signal_to_one_reaches_all(monkeypatch):
    first, second, third = call(*places(3))
    heard = threading.Semaphore(0)
    sent = []
    monkeypatch.setattr(StopRequest, "asked", False)
    monkeypatch.setattr(os, "kill", lambda *given: (sent.append(given), heard.release()))
    second.stop()
    second.stop()
    assert heard.acquire(timeout=10) and heard.acquire(timeout=10)
    assert sent == [(os.getpid(), signal.SIGTERM)] * 2
    assert first.stopping and second.stopping and third.stopping
    for one in (second, third, first):
        one.leave()


@pytest.mark.parametrize(("asked", "error"), [(True, KeyboardInterrupt), (False, DistributedError)])
def test_who_waits_for_one_that_left_waits_no_longer(monkeypatch, asked, error):
    first, second, third = call(*places(3))
    monkeypatch.setattr(StopRequest, "asked", asked)
    second.leave()
    with pytest.raises(error, match=None if asked else "process 1 of 3 on .* left before 'end'"):
        first.barrier("end")
    for one in (third, first):
        one.leave()


@pytest.mark.parametrize(
    "said",
    [
        {"SLURM_STEP_NUM_NODES": "2"},
        {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
    ],
    ids=["SLURM", "Open MPI"],
)
def test_a_coordinator_on_loopback_is_refused_for_several_hosts(monkeypatch, said):
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(ConfigError, match="127.0.0.1:9 is on loopback.*several hosts"),
        processes.initialize("127.0.0.1:9", 2, 1, timeout_s=0.1),
    ):
        pass


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_processes": 2}, "--num-processes 2 alone.*--coordinator-address and --process-id"),
        (
            {"coordinator_address": "here", "num_processes": 2, "process_id": 0},
            "--coordinator-address is 'here'.*HOST:PORT",
        ),
        (
            {"coordinator_address": "here:1", "num_processes": 2, "process_id": 2},
            "--process-id 2 of --num-processes 2.*use 0 to 1",
        ),
    ],
)
def test_what_cannot_be_a_place_is_named(given, message):
    with pytest.raises(ConfigError, match=message), processes.initialize(**given):
        pass


def test_alone_nothing_happens():
    with processes.initialize(), processes.initialize(num_processes=1, process_id=0):
        assert processes.process_count() == 1 and processes.writes()
        assert processes.agreed("a", "one")
        assert processes.collect({1: 2}, "all") == {1: 2} and processes.share() == slice(None)
        processes.barrier("nobody else")
        assert processes.stop_reached(True, 3) and not processes.stop_reached(False, 3)


def test_what_differs_between_processes_is_seen(monkeypatch):
    monkeypatch.setattr(processes, "process_count", lambda: 2)
    for other, same in (("a", True), ("b", False)):
        monkeypatch.setattr(processes, "collect", lambda mine, _, it=other: {1: it} | mine)
        assert processes.agreed("a", "clips") == same


def test_the_command_line_takes_a_place_before_or_after_other_options():
    from jvdm.cli import _place

    given = ["nano", "--process-id=1", "--workdir", "w", "--num_processes", "2"]
    given += ["--coordinator-address", "host:1", "--json"]
    found, others = _place(given)
    assert found == {"process_id": 1, "num_processes": 2, "coordinator_address": "host:1"}
    assert others == ["nano", "--workdir", "w", "--json"]
    for wrong in (["--process-id", "one"], ["--num-processes"]):
        with pytest.raises(ConfigError, match=r"--\w+-\w+ is '.*give a number"):
            _place(wrong)
