"""Where jvdm keeps what can be made again: compiled programs."""

import os
from pathlib import Path

from jvdm.errors import ConfigError

SHORTEST_COMPILE_SECONDS = 0.5  # programs that compile faster are not worth a file


def cache_folder() -> Path:
    """Returns the folder of all caches: `$JVDM_HOME`, else `jvdm` in the user's cache folder."""
    if home := os.environ.get("JVDM_HOME"):
        return Path(home).expanduser()
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(user).expanduser() / "jvdm"


def limit_bytes(setting: str, usual_gb: float) -> float:
    """Returns how many bytes all files of a cache may have.

    Args:
        setting: The environment variable that says so, in GB.
        usual_gb: What it is if left out.

    Raises:
        ConfigError: If it is no number.
    """
    said = os.environ.get(setting) or str(usual_gb)
    try:
        return 1e9 * max(float(said), 0.0)
    except ValueError as error:
        what, fix = f"{setting} is {said!r}", f"use {usual_gb:g}, or 0 to keep none"
        raise ConfigError(what, "it is a size in GB", fix) from error


def compilation_folder() -> Path:
    """Returns where compiled programs lie; `$JAX_COMPILATION_CACHE_DIR` comes first."""
    return Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or cache_folder() / "xla")


def keep_compiled_programs() -> None:
    """Lets JAX keep compiled programs on disk, so that the next process starts fast.

    Changes nothing where a cache is set up already. A folder that cannot be written
    costs speed only: JAX warns and compiles.
    """
    import jax

    if getattr(jax.config, "jax_compilation_cache_dir", None):
        return
    jax.config.update("jax_compilation_cache_dir", str(compilation_folder()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST_COMPILE_SECONDS)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
