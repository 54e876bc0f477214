"""Folders of Diffusers: `model_index.json`, and a folder for every component.

model_index.json                 class of the pipeline and of every component
COMPONENT/config.json            fields of its class
COMPONENT/*.safetensors          its arrays, in one file, or in several with `*.index.json`
scheduler/scheduler_config.json  levels and solver
tokenizer/tokenizer.json         how prompts are read
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from jvdm.errors import WeightsError
from jvdm.files import replacing, write_text
from jvdm.reading import read_json
from jvdm.weights.convert import Table, converted, published
from jvdm.weights.folder import INDEX, Manifest
from jvdm.weights.safetensors import listed, map_stored

CONFIG = "config.json"  # of a component
SHARD_BYTES = 5 * 10**9  # of a file, as Diffusers divides arrays among files
_FIX = "download the folder again"


def read_index(folder: Path) -> dict[str, Any]:
    """Returns what `model_index.json` says.

    Raises:
        WeightsError: If it cannot be read, or is no JSON object.
    """
    return read_config(folder / INDEX)


def read_config(path: Path) -> dict[str, Any]:
    """Returns the fields that a JSON file of a published folder holds.

    Raises:
        WeightsError: If it cannot be read, or is no JSON object.
    """
    content = read_json(path, "configuration", WeightsError, _FIX)
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds no fields", "a JSON object was expected", _FIX)
    return content


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Returns views of the arrays of a component, by their published names.

    Raises:
        WeightsError: If there are none, a file of several is missing or lacks an array, or a
            file is truncated, a git-lfs pointer or corrupt.
    """
    lists = sorted(folder.glob("*.safetensors.index.json"))
    files = sorted(folder.glob("*.safetensors"))
    if len(lists) > 1 or not lists and len(files) != 1:
        found = ", ".join(path.name for path in [*lists, *files]) or "none"
        why = "the arrays are in one file, or in several that one index lists"
        raise WeightsError(f"{folder} holds these safetensors files: {found}", why, _FIX)
    if not lists:
        return map_stored(files[0])
    places = read_config(lists[0]).get("weight_map")
    if not isinstance(places, dict) or not all(
        Path(str(file)).name == file for file in places.values()
    ):
        raise WeightsError(f"{lists[0]} lists no arrays", "`weight_map` says where each is", _FIX)
    shards = {file: map_stored(folder / file) for file in sorted(set(places.values()))}
    lost = sorted(name for name, file in places.items() if name not in shards[file])
    if lost:
        raise WeightsError(f"{folder} lacks {listed(lost)}", f"{lists[0].name} lists them", _FIX)
    return {name: array for shard in shards.values() for name, array in shard.items()}


def write_tensors(
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    stem: str = "diffusion_pytorch_model",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes the arrays of a component, in as few files as there can be.

    Args:
        folder: Where to write; made if missing.
        tensors: Arrays by published name.
        stem: Beginning of the names of files; Transformers calls it `model`.
        shard_bytes: Largest size of a file that holds more than one array.
    """
    shards: list[dict[str, np.ndarray]] = [{}]
    for name in sorted(tensors):
        held = sum(array.nbytes for array in shards[-1].values())
        if shards[-1] and held + tensors[name].nbytes > shard_bytes:
            shards.append({})
        shards[-1][name] = tensors[name]
    count, places = len(shards), {}
    for number, shard in enumerate(shards, start=1):
        part = f"-{number:05d}-of-{count:05d}" if count > 1 else ""
        with replacing(folder / f"{stem}{part}.safetensors") as temporary:
            safetensors.numpy.save_file(shard, temporary, {"format": "pt"})
        places |= {name: f"{stem}{part}.safetensors" for name in shard}
    if count > 1:
        total = sum(array.nbytes for array in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        write_text(folder / f"{stem}.safetensors.index.json", json.dumps(index, indent=2) + "\n")


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the parameters of a component are published, and under which names.

    Attributes:
        folder: Folder of the component.
        table: What its parameters are called.
        stem: Beginning of the names of its files.
        others: Arrays that lie beside its parameters and go along, such as latent statistics.
    """

    folder: str
    table: Table
    stem: str = "diffusion_pytorch_model"
    others: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def read(self, folder: Path, expected: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the parameters that `folder` has there, of the network that has `expected`."""
        path = folder / self.folder
        return converted(self.table, read_tensors(path), expected, path)[0]


@dataclasses.dataclass(frozen=True)
class Published(Manifest):
    """What a published folder holds, said as in a folder of ours.

    Attributes:
        sources: Where the parameters of every component are; of one that is several networks,
            by the name of each.
    """

    sources: Mapping[str, Source | Mapping[str, Source]] = dataclasses.field(default_factory=dict)

    def parameters(
        self, folder: str | Path, name: str, expected: Mapping[str, Any] | None = None
    ) -> tuple[Path, dict[str, Any]]:
        """Reads the parameters of a component, in the number types of the files.

        Args:
            folder: The published folder.
            name: Name of the component.
            expected: The parameters of its network, whose leaves have a `shape`.

        Raises:
            WeightsError: If a file is missing or broken, or an array is missing, left over, of
                another shape or not finite.
        """
        assert expected is not None, "how many layers there are is known from the network"
        path, source = Path(folder), self.sources[name]
        if isinstance(source, Source):
            return path / source.folder, source.read(path, expected)
        return path, {part: one.read(path, expected[part]) for part, one in source.items()}

    def write(self, folder: Path, params: Mapping[str, Any], settings: Path) -> None:
        """Writes a published folder with these parameters.

        Args:
            folder: Where to write; made if missing.
            params: Parameters by component, in the number types that are to be stored.
            settings: Published folder of the same networks, whose other files go along; it may
                be `folder` itself.
        """
        for path in sorted(settings.rglob("*")):
            place = folder / path.relative_to(settings)
            is_weights = path.name.endswith((".safetensors", ".safetensors.index.json"))
            if path.is_file() and not is_weights and place != path:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, place)
        each = []
        for name, source in self.sources.items():
            parts = {name: source} if isinstance(source, Source) else source
            own = params if isinstance(source, Source) else params[name]
            each += [(one, own[part]) for part, one in parts.items()]
        for source, own in each:
            tensors = {**published(source.table, own), **source.others}
            write_tensors(folder / source.folder, tensors, source.stem)
