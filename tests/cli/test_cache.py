"""Where compiled programs are kept."""

from pathlib import Path

import pytest

from jvdm import cache


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"JVDM_HOME": "/a"}, "/a/xla"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/jvdm/xla"),
        ({}, "/home/me/.cache/jvdm/xla"),
        ({"JVDM_HOME": "/a", "JAX_COMPILATION_CACHE_DIR": "/c"}, "/c"),
    ],
)
def test_the_environment_chooses_the_folder(monkeypatch, environment, folder):
    for name in ("JVDM_HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache.compilation_folder() == Path(folder)


def test_programs_are_kept_for_the_next_process(run_python, tmp_path):
    code = """
from jvdm import cache
cache.keep_compiled_programs()
import jax, jax.numpy as jnp
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((4, 4)))
"""
    home = {"JVDM_HOME": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": ""}
    run_python("-c", code, check=True, **home)
    assert list((tmp_path / "xla").iterdir())
