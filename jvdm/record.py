"""The record beside each output: everything that made it, as JSON."""

import dataclasses
import datetime
import hashlib
import json
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jvdm.errors import ConfigError
from jvdm.files import write_text
from jvdm.reading import checked, made_of, read_json

SCHEMA = "jvdm.record/1"
PACKAGES = ("jvdm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "av")

Status = Literal["done", "latents", "interrupted"]


@dataclasses.dataclass(frozen=True)
class Record:
    """How an output was made; `jvdm generate --like` makes it again.

    Attributes:
        settings: Every option with the value that was used, defaults included, and the
            sha256 of what was given as `inputs`.
        weights: Family, folder and sha256 of each file of the weights.
        device: Platform, kind and number of the devices.
        seconds: Time of each stage.
        sha256: Digests of `latents` and, when they were made, of `frames`.
        outputs: Files that were written, by kind.
        warnings: What the user was warned of.
        system: Process, prediction and sampling that were run, as in a manifest, and rows,
            window and sha256 of the timestep matrix.
        attention: What sparse attention did (`jvdm.attention.summary`): density, recall, and the
            share of calls that were dense; empty for dense attention.
        cache: What a step cache did (`jvdm.models.step_cache.summary`): calls of the network, and
            those that computed its layers; empty without one.
        status: "latents" if decoding was left out, "interrupted" if the latents are
            those at Ctrl-C.
        versions: Python and the packages that the result depends on.
        created: Time of writing, UTC.
        schema: Layout of this record.
    """

    settings: Mapping[str, Any]
    weights: Mapping[str, Any]
    device: Mapping[str, Any]
    seconds: Mapping[str, float]
    sha256: Mapping[str, str]
    outputs: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    system: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    attention: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    cache: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    status: Status = "done"
    versions: Mapping[str, str] = dataclasses.field(default_factory=lambda: versions())
    created: str = dataclasses.field(default_factory=lambda: _now())
    schema: str = SCHEMA

    def as_data(self) -> dict[str, Any]:
        """Returns the record as JSON data."""
        return dataclasses.asdict(self)


def write(path: str | Path, record: Record) -> Path:
    """Writes a record, whole or not at all."""
    write_text(Path(path), json.dumps(record.as_data(), indent=1, default=str) + "\n")
    return Path(path)


def read(path: str | Path) -> Record:
    """Reads a record.

    Raises:
        ConfigError: If the file is missing, is no record, or of another schema.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise ConfigError(f"record {path} does not exist", "", _FIX)
    return parse(read_json(path, "record", fix=_FIX), path)


_FIX = "give the .json file beside a video that jvdm made"


def parse(content: Any, path: Path) -> Record:
    """Returns the record that JSON data from `path` holds.

    Raises:
        ConfigError: If it is no record, or of another schema.
    """
    schema = content.get("schema", SCHEMA) if isinstance(content, dict) else SCHEMA
    if schema != SCHEMA:
        what, why = f"{path} has the schema {repr(schema)[:80]}", f"this jvdm reads {SCHEMA}"
        raise ConfigError(what, why, "use the jvdm that wrote it")
    record = made_of(Record, content, path, fix=_FIX)
    checked(Mapping[str, str], record.weights.get("sha256", {}), "weights.sha256", path, _FIX)
    return record


def digest(*inputs: Any) -> str:
    """Returns the sha256 of files by their bytes, of arrays by type, shape and values."""
    state = hashlib.sha256()
    for item in inputs:
        if isinstance(item, list | tuple):
            state.update(digest(*item).encode())
            continue
        if isinstance(item, str | Path):
            with Path(item).expanduser().open("rb") as file:
                hashlib.file_digest(file, lambda: state)
            continue
        array = np.asarray(getattr(item, "frames", item))
        state.update(f"{array.dtype} {array.shape}".encode())
        state.update(array.tobytes())
    return state.hexdigest()


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def device() -> dict[str, Any]:
    """Returns what JAX computes on."""
    import jax

    devices = jax.devices()
    first = devices[0]
    return {"platform": first.platform, "kind": first.device_kind, "count": len(devices)}


def _now() -> str:
    """Returns the time in seconds, UTC, as ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
