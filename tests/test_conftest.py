"""The strictness that every other test relies on is really on."""

import importlib.util
import signal
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

from jvdm import keys


@pytest.mark.skipif(importlib.util.find_spec("beartype") is None, reason="needs beartype")
def test_wrong_shapes_are_refused():
    with pytest.raises(jaxtyping.TypeCheckError):
        keys.addressed_normal(
            jax.random.key(0), jnp.zeros((2, 2), jnp.int32), jnp.arange(3), shape=(4,)
        )


@pytest.mark.skipif(importlib.util.find_spec("beartype") is None, reason="needs beartype")
def test_functions_inside_functions_are_checked_by_annotations_of_their_own():
    from tests.checks import checked

    def made(size):
        @jaxtyping.jaxtyped(typechecker=checked)
        def inside(x: jaxtyping.Float[jax.Array, f"{size}"]):
            return x

        return inside

    for size in (2, 3, 2):
        assert made(size)(jnp.ones(size)).shape == (size,)
        with pytest.raises(jaxtyping.TypeCheckError):
            made(size)(jnp.ones(5 - size))


def test_implicit_broadcasting_is_refused():
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.add(jnp.ones((2, 3)), jnp.ones(3))


def test_several_devices_are_there():
    assert jax.device_count() >= 4 or jax.default_backend() != "cpu"


def test_child_processes_are_strict_too(run_python):
    code = "import jax.numpy as jnp; jnp.ones((2, 3)) + jnp.ones(3)"
    process = run_python("-c", code)
    assert process.returncode == 1
    assert "rank_promotion" in process.stderr


def test_small_programs_share_a_context_of_the_compiler():
    lowered: list[Any] = [jax.jit(lambda x, i=i: x + i).lower(1.0).compiler_ir() for i in range(40)]
    contexts = {id(module.context) for module in lowered}
    assert len(contexts) <= 5


def test_ctrl_c_interrupts():
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_run_does_not_depend_on_what_started_it(root):
    """Ctrl-C and termination ignored, no terminal, no standard input, no locale."""
    ignoring = ["sh", "-c", 'trap "" INT TERM HUP; exec "$0" "$@" <&-', "env", "LANG=C"]
    test = f"{__file__}::{test_ctrl_c_interrupts.__name__}"
    process = subprocess.run(
        [*ignoring, sys.executable, "-m", "pytest", "-q", test],
        cwd=root,
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stdout + process.stderr
