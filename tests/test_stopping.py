"""A request to stop that comes twice, from a scheduler and from another process, counts once."""

import gc
import os
import signal
import sys
import threading
import time
import weakref

import pytest

from jvdm.errors import Interrupted, Preempted
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


class _Finalised:
    """Something with a finaliser, to which others may refer weakly."""

    def __init__(self, act=lambda: None):
        self.act = act

    def __del__(self):
        self.act()


def _in_a_finaliser(act):
    _Finalised(act)


def _in_the_callback_of_a_weak_reference(act):
    """As in `weakref.WeakKeyDictionary`, by which JAX keeps what it traced."""
    kept = _Finalised()
    reference = weakref.ref(kept, lambda _: act())
    del kept
    assert reference() is None


def _in_the_garbage_collectors_callback(act):
    """As in JAX's `_xla_gc_callback`."""

    def callback(phase, _):
        if phase == "start":
            act()

    gc.callbacks.append(callback)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(callback)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "loses",
    [_in_a_finaliser, _in_the_callback_of_a_weak_reference, _in_the_garbage_collectors_callback],
)
def test_a_signal_that_arrives_where_exceptions_are_lost_is_heard_after_it(loses, number, capsys):
    reached, before = [], sys.unraisablehook

    def act():
        os.kill(os.getpid(), number)
        reached.append(sum(range(1000)))

    expected = Preempted if number == signal.SIGTERM else Interrupted
    with pytest.raises(expected, match="stopped by"), StopRequest():
        loses(act)
        reached.append("after it")
        signal.sigtimedwait((), 5)
        reached.append("not heard")
    assert reached == ["after it"] and sys.unraisablehook is before
    assert "Traceback" not in capsys.readouterr().err


def test_a_signal_that_was_lost_at_the_very_end_is_heard_there_and_comes_to_nobody_else():
    with pytest.raises(Preempted, match="stopped by SIGTERM"), StopRequest():
        _in_a_finaliser(lambda: os.kill(os.getpid(), signal.SIGTERM) or sum(range(1000)))
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    signal.sigtimedwait((), 0.1)
    signal.signal(signal.SIGTERM, before)
    assert not heard


def test_what_is_lost_without_a_signal_is_said_as_ever(monkeypatch):
    said = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)

    def fails():
        raise ValueError("in a finaliser")

    with StopRequest():
        _in_a_finaliser(fails)
    assert [type(raised.exc_value) for raised in said] == [ValueError]


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
