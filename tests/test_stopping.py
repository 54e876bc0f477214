"""A request to stop that comes twice, from a scheduler and from another process, counts once."""

import os
import signal
import threading
import time

import pytest

from jvdm.errors import Preempted
from jvdm.stopping import StopRequest, ask


def test_a_second_sigterm_does_not_interrupt_the_first_ones_end():
    heard, after = [], []
    with pytest.raises(Preempted, match="stopped by SIGTERM"), StopRequest():
        try:
            with StopRequest(heard=lambda: heard.append("passed on")):
                try:
                    os.kill(os.getpid(), signal.SIGTERM)
                    signal.sigtimedwait((), 5)
                finally:
                    os.kill(os.getpid(), signal.SIGTERM)
                    after.append("inner")
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            ask()
            after.append("outer")
    assert after == ["inner", "outer"] and heard


def test_another_process_asks_as_a_signal_does_and_each_run_is_asked_anew():
    for _ in range(2):
        with pytest.raises(Preempted, match="stopped by SIGTERM"), StopRequest():
            ask()
            signal.sigtimedwait((), 5)


def _xla_gc_callback():
    """Is called as JAX's is: what it raises is lost."""
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            pass
    except KeyboardInterrupt:
        return "lost"


def test_a_signal_that_arrives_where_exceptions_are_lost_is_heard_after_it():
    with pytest.raises(Preempted), StopRequest():
        assert _xla_gc_callback() is None
        signal.sigtimedwait((), 5)
        pytest.fail("it was not heard")


def test_a_signal_that_a_library_turns_into_an_error_of_its_own_stops_the_run_nevertheless():
    """As JAX does where it compares the static fields of trees: `ValueError: Exception raised`."""
    with pytest.raises(Preempted, match="stopped by SIGTERM") as stopped, StopRequest():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.sigtimedwait((), 5)
        except KeyboardInterrupt:
            raise ValueError("Exception raised while checking equality") from None
    assert isinstance(stopped.value.__context__, ValueError)
    with pytest.raises(ValueError, match="of its own"), StopRequest() as stop, stop.later():
        os.kill(os.getpid(), signal.SIGTERM)
        raise ValueError("of its own")


def test_a_signal_that_another_thread_got_is_heard_while_that_one_works():
    ended = threading.Event()

    def work():
        time.sleep(0.2)  # till the main thread waits
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        ended.wait(20)

    with pytest.raises(Preempted), StopRequest() as stop:
        working = stop.background(work)
        working.result()
    assert not working.done()
    ended.set()


def test_works_side_by_side_wait_for_each_other_and_the_first_error_for_none():
    met, ended, waited = threading.Barrier(2, timeout=20), threading.Event(), []

    def fails():
        raise ValueError("at once")

    with StopRequest() as stop:
        assert stop.side_by_side(lambda: met.wait() >= 0, lambda: met.wait() < 2) == [True, True]
        assert stop.side_by_side(lambda: time.sleep(0.1), lambda: "later") == [None, "later"]
        with pytest.raises(ValueError, match="at once"):
            stop.side_by_side(lambda: waited.append(ended.wait(5)), fails)
        assert not waited
        ended.set()
