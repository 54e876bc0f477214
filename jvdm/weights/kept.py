"""Parameters of published folders as devices hold them, kept for the next load.

CACHE/weights/KEY/NAME.safetensors  parameters of the network NAME
CACHE/weights/KEY/source.json       the folder, and which arrays were read of it
CACHE/digests/STATE.json            sha256 of the files of a folder

STATE is a hash of the name, size and times (of content and of status) of every file that holds
arrays or fields; KEY is one of STATE, of the code that reads weights and of the number types. So a
change of any of these makes another copy, and the oldest copies go where there is no room.
`$JVDM_WEIGHTS_CACHE_GB` says how large all may be; 0 keeps none.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jvdm import recipes
from jvdm.cache import cache_folder, limit_bytes
from jvdm.errors import ConfigError, WeightsError
from jvdm.files import appearing, write_text
from jvdm.reading import read_json
from jvdm.stages import seen
from jvdm.weights.folder import identity as read_identity
from jvdm.weights.folder import is_published
from jvdm.weights.leaves import own_leaves
from jvdm.weights.safetensors import Tree, flatten, save_stored

SETTING = "JVDM_WEIGHTS_CACHE_GB"
USUAL_GB = 100.0
SMALLEST_BYTES = 64e6  # loads within a second anyway
SETTLED_S = 2.0  # a file that changed later than this ago might change again within one tick
SPARE = 0.05  # of a disk, which copies leave free
SOURCE = "source.json"
_CODE = ("weights", "models", "text", "vae")


@dataclasses.dataclass(frozen=True)
class Copy:
    """A copy of the parameters of a published folder: one that is there, or may be written.

    Attributes:
        place: Its folder.
        source: The published folder.
        state: What the files of the source were, as a hash.
    """

    place: Path
    source: Path
    state: str

    @property
    def exists(self) -> bool:
        """Whether it is there."""
        return os.path.isfile(self.place / SOURCE)

    def read(self, name: str, expected: Mapping[str, Any]) -> Tree | None:
        """Returns the parameters of a network, to be read as they are needed; None if broken.

        Args:
            name: Name of the network.
            expected: Its parameters; leaves have a `shape`.
        """
        try:
            content = read_json(self.place / SOURCE, "copy", WeightsError)
            tree = own_leaves(self.place / f"{name}.safetensors", expected, "")
            os.utime(self.place / SOURCE)
        except (WeightsError, OSError) as error:
            warnings.warn(f"a copy of {self.source} is read no more: {error}", stacklevel=2)
            shutil.rmtree(self.place, ignore_errors=True)
            return None
        seen().arrays.update(content["arrays"])
        return tree

    def write(self, params: Mapping[str, Mapping[str, Any]]) -> int:
        """Writes parameters, whole or not at all; returns their bytes, 0 if nothing is kept.

        What cannot be kept costs time only: a warning says why.

        Args:
            params: Parameters by network, in the number types that devices hold.
        """
        flat = {name: flatten(tree) for name, tree in params.items()}
        size = sum(leaf.nbytes for leaves in flat.values() for leaf in leaves.values())
        if _state(self.source) != self.state:
            return 0
        root = self.place.parent
        try:
            with appearing(self.place) as folder:
                _make_room(root, size)
                for name, leaves in flat.items():
                    save_stored(folder / f"{name}.safetensors", leaves, {})
                said = {"source": str(self.source), "bytes": size, "arrays": seen().arrays}
                write_text(folder / SOURCE, json.dumps(said, indent=1) + "\n")
        except (OSError, ConfigError) as error:
            if self.exists:  # another process was first
                return size
            said = f"{self.source} is loaded as slowly the next time: no copy of it is kept in"
            warnings.warn(f"{said} {root}: {error} ({SETTING}=0 keeps none)", stacklevel=2)
            return 0
        return size


def copy_of(folder: Path, shapes: Mapping[str, Any]) -> Copy | None:
    """Returns the copy of a published folder; None if none is kept.

    Args:
        folder: The published folder.
        shapes: Shape and number type of all parameters on devices, by network.
    """
    if not is_published(folder) or not _is_kept(folder):
        return None
    kinds = {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in flatten(shapes).items()}
    state = _state(folder)
    key = _hash([state, _code(), kinds])
    return Copy(cache_folder() / "weights" / key, folder.absolute(), state)


def identity(folder: Path) -> dict[str, str]:
    """Returns the sha256 of the files of a weights folder, which may be remembered.

    Those of a published folder are, as long as no file changes: to hash 6 GB takes 4 s.
    """
    if not is_published(folder) or not _is_kept(folder):
        return read_identity(folder)
    state = _state(folder)
    path = cache_folder() / "digests" / f"{state}.json"
    with contextlib.suppress(ConfigError):
        if os.path.isfile(path):
            found = read_json(path, "list")
            if isinstance(found, dict):
                return found
    found = read_identity(folder)
    if state == _state(folder):
        with contextlib.suppress(ConfigError):
            write_text(path, json.dumps(found, indent=1) + "\n")
    return found


def copies() -> list[tuple[Path, int]]:
    """Returns all copies and their bytes, the one first that was not used for longest."""
    places = (cache_folder() / "weights").glob(f"*/{SOURCE}")
    ordered = sorted(places, key=lambda path: path.stat().st_mtime)
    return [(path.parent, _bytes(path.parent)) for path in ordered]


def _make_room(root: Path, size: int) -> None:
    """Removes the copies that were not used for longest until one of `size` bytes fits.

    Raises:
        ConfigError: If it cannot fit.
    """
    for left in root.glob(".*"):  # of processes that were killed
        if time.time() - left.stat().st_mtime > 86400:
            shutil.rmtree(left, ignore_errors=True)
    limit, old = limit_bytes(SETTING, USUAL_GB), copies()
    if size > limit:
        why = f"all may have {limit / 1e9:g} GB"
        raise ConfigError(f"it has {size / 1e9:.1f} GB", why, f"raise {SETTING}")
    while old and size + sum(count for _, count in old) > limit:
        shutil.rmtree(old.pop(0)[0], ignore_errors=True)
    disk = shutil.disk_usage(root)
    if size > disk.free - SPARE * disk.total:
        what = f"it has {size / 1e9:.1f} GB, and {disk.free / 1e9:.1f} are free"
        raise ConfigError(what, f"{SPARE:.0%} of a disk are left free", "free some space")


def _is_kept(folder: Path) -> bool:
    """Whether a copy of a folder is worth its place, and any is wanted."""
    size = sum(path.stat().st_size for path in _files(folder))
    return limit_bytes(SETTING, USUAL_GB) > 0 and size >= SMALLEST_BYTES


def _files(folder: Path) -> list[Path]:
    """Returns the files that hold arrays or fields."""
    kinds = (".safetensors", ".json")
    return sorted(path for path in folder.rglob("*") if path.suffix in kinds and path.is_file())


def _state(folder: Path) -> str:
    """Returns a hash of what the files of a published folder are, without reading them."""
    found, now = [], time.time()
    for path in _files(folder):
        said = path.stat()
        times = [said.st_mtime_ns, said.st_ctime_ns]
        settled = now - max(times) / 1e9 >= SETTLED_S
        name = path.relative_to(folder).as_posix()
        found.append([name, said.st_size, *(times if settled else [time.time_ns()])])
    return _hash(found)


def _code() -> str:
    """Returns a hash of the code that says how weights become parameters."""
    package = Path(__file__).parents[1]
    folders = [package / name for name in _CODE]
    folders += map(Path, importlib.import_module(recipes.FAMILIES).__path__)
    files = sorted(path for folder in folders for path in folder.glob("*.py"))
    return _hash([hashlib.sha256(path.read_bytes()).hexdigest() for path in files])


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
