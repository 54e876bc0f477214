"""States of prompts: made once, kept, and read again without a text encoder.

Each prompt is encoded by itself, so that its states depend on nothing else in its batch, and are
kept by a hash of its token ids, of the weights of the encoder, of its fields and number type, and
of what computed them. They are kept in the memory of the host, and those of encoders of more than
64 MB also on disk, because a command is a process of its own: one that is given a prompt for the
second time need not load 11 GB for it.

CACHE/texts/KEY.safetensors  states and lengths of one prompt

`$JVDM_TEXTS_CACHE_GB` says how large all files may be; 0 keeps none.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jvdm.arrays import PyTree
from jvdm.cache import cache_folder, limit_bytes
from jvdm.errors import JvdmError, WeightsError
from jvdm.models.conditions import TextStates
from jvdm.parallel import replicate
from jvdm.pipeline import programs
from jvdm.products import device_bytes
from jvdm.record import versions
from jvdm.system import System
from jvdm.weights.safetensors import load_stored, save_stored

SETTING = "JVDM_TEXTS_CACHE_GB"
USUAL_GB = 1.0  # 250 prompts of Wan in bfloat16
HELD_BYTES = 256e6  # in the memory of the host
_NOT_SAID = {"tokenizer", "parent", "name"}
SMALLEST_BYTES = 64e6  # of an encoder whose states are kept on disk: a smaller one is as fast


@dataclasses.dataclass(frozen=True, eq=False)
class Texts:
    """The text encoder of a loaded model, and the states that it made.

    Attributes:
        params: Its parameters on the device; None where they are dropped after each use.
        fetch: Loads them, where they are dropped.
        identity: What says which weights they are; "" keeps nothing.
        on_disk: Whether states are kept there too.
        held: States in memory by their keys, those first that were not used for longest.
    """

    params: PyTree | None = None
    fetch: Callable[[], PyTree] | None = None
    identity: str = ""
    on_disk: bool = False
    held: collections.OrderedDict[str, Any] = dataclasses.field(
        default_factory=collections.OrderedDict
    )

    def states(self, system: System, batches: Sequence[Any], mesh: Mesh | None) -> list[TextStates]:
        """Returns the states of batches of prompts, encoding what is not known.

        Args:
            system: Whose text encoder it is.
            batches: What `text.read` made of the prompts of each.
            mesh: Devices that share the work.
        """
        system = system.only("text")
        about = [_fields(system.text), self.identity]
        rows = [_rows(ids) for ids in batches]
        keys = [[_key(about, row) for row in batch] for batch in rows]
        known = {key: None for batch in keys for key in batch} | self._known(keys)
        params = self.params
        for key, row in zip(sum(keys, []), sum(rows, []), strict=True):
            if known[key] is not None:
                continue
            params = self.fetch() if params is None and self.fetch is not None else params
            given = row if mesh is None else replicate(row, mesh)
            made = programs.read_text(system, {"text": params}, given, mesh=mesh)
            known[key] = jax.tree.map(np.asarray, made)
            self._keep(key, known[key])
        return [_joined([known[key] for key in batch]) for batch in keys]

    def _known(self, keys: Sequence[Sequence[str]]) -> dict[str, Any]:
        """Returns the states that are kept, by key."""
        found = {}
        for key in dict.fromkeys(sum(map(list, keys), [])):
            states = self.held.get(key) or (_read(_file(key)) if self.on_disk else None)
            if states is not None:
                found[key] = states
                self._hold(key, states)
        return found

    def _keep(self, key: str, states: Any) -> None:
        if self.identity:
            self._hold(key, states)
        if self.identity and self.on_disk:
            _write(_file(key), states)

    def _hold(self, key: str, states: Any) -> None:
        """Puts states last, and lets go of the first where they are too many."""
        self.held[key] = states
        self.held.move_to_end(key)
        while len(self.held) > 1 and sum(map(device_bytes, self.held.values())) > HELD_BYTES:
            self.held.popitem(last=False)


def texts_of(
    params: PyTree | None,
    fetch: Callable[[], PyTree] | None,
    files: dict[str, str],
    size_bytes: int,
) -> Texts:
    """Returns the text encoder of a loaded model, of which nothing is encoded yet.

    Args:
        params: Its parameters on the device; None where they are dropped after each use.
        fetch: Loads them, where they are dropped.
        files: sha256 of the files of its weights.
        size_bytes: Of its parameters on the device.
    """
    made_by = [versions(), [device.device_kind for device in jax.devices()]]
    identity = hashlib.sha256(json.dumps([files, made_by], sort_keys=True).encode()).hexdigest()
    # Processes that read different files would not encode together.
    on_disk = jax.process_count() == 1 and size_bytes >= SMALLEST_BYTES
    kept = on_disk and limit_bytes(SETTING, USUAL_GB) > 0
    return Texts(params, fetch if params is None else None, identity, kept)


def _fields(encoder: Any) -> str:
    """Returns what an encoder is; what its tokenizer is the ids say."""
    names = sorted({field.name for field in dataclasses.fields(encoder)} - _NOT_SAID)
    return repr([type(encoder).__name__, *((name, getattr(encoder, name)) for name in names)])


def _rows(ids: Any) -> list[Any]:
    """Returns the ids of each prompt, as a batch of one."""
    leaves, structure = jax.tree.flatten(ids)
    parts = (np.split(np.asarray(leaf), len(leaf)) for leaf in leaves)
    return [jax.tree.unflatten(structure, row) for row in zip(*parts, strict=True)]


def _key(about: Sequence[str], row: Any) -> str:
    """Returns the name of the states of a prompt."""
    leaves = [[str(leaf.dtype), leaf.tolist()] for leaf in jax.tree.leaves(row)]
    return hashlib.sha256(json.dumps([about, leaves]).encode()).hexdigest()


def _joined(parts: Sequence[Any]) -> TextStates:
    """Returns the states of a batch of the prompts' own."""
    return jax.tree.map(lambda *leaves: jnp.asarray(np.concatenate(leaves)), *parts)


def _file(key: str) -> Path:
    return cache_folder() / "texts" / f"{key}.safetensors"


def _read(path: Path) -> Any:
    """Returns the states in a file; None if there is none, or it is broken."""
    if not os.path.isfile(path):
        return None
    try:
        arrays: Any = load_stored(path)
        states = TextStates(**arrays)
        os.utime(path)
    except (WeightsError, TypeError, OSError) as error:
        warnings.warn(f"kept states of a prompt are made again: {error}", stacklevel=2)
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    return states


def _write(path: Path, states: Any) -> None:
    """Writes the states of a prompt; what cannot be kept costs time only, and a warning says so."""
    limit = limit_bytes(SETTING, USUAL_GB)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        old = sorted(path.parent.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
        held = sum(file.stat().st_size for file in old) + device_bytes(states)
        while old and held > limit:
            held -= old[0].stat().st_size
            old.pop(0).unlink(missing_ok=True)
        if held <= limit:
            save_stored(path, {"states": states.states, "lengths": states.lengths}, {})
    except (OSError, JvdmError) as error:
        said = f"states of a prompt are not kept in {path.parent}: {error} ({SETTING}=0 keeps none)"
        warnings.warn(said, stacklevel=2)
