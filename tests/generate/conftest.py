"""One random model for all tests of this folder; its programs are compiled once."""

import contextlib
import threading

import jax
import pytest

import jvdm
from tests.generate import nano


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A weights folder."""
    return nano.write_weights(tmp_path_factory.mktemp("nano"))


@pytest.fixture(scope="session")
def pipe(weights):
    """The loaded model."""
    return jvdm.load(weights, progress=False)


@pytest.fixture
def compilations():
    """Collects what JAX traces or compiles while it is open.

    Not in threads that were there before: a training run of another test that was refused may
    compile its step to the end.
    """

    @contextlib.contextmanager
    def collecting():
        found, others = [], {thread.ident for thread in threading.enumerate()}
        others.discard(threading.get_ident())

        def note(event, duration_secs, **about):
            mine = threading.get_ident() not in others
            if mine and event.endswith(("jaxpr_trace_duration", "backend_compile_duration")):
                found.append((event, about))

        jax.monitoring.register_event_duration_secs_listener(note)
        try:
            yield found
        finally:
            jax.monitoring.unregister_event_duration_listener(note)

    return collecting
