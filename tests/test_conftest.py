"""The strictness that every other test relies on is really on."""

import importlib.util

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
