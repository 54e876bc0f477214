"""Folders of Diffusers: `model_index.json`, and a folder for every component.

model_index.json                 class of the pipeline and of every component
COMPONENT/config.json            fields of its class
COMPONENT/*.safetensors          its arrays, in one file, or in several with `*.index.json`
scheduler/scheduler_config.json  levels and solver
tokenizer/tokenizer.json         how prompts are read

`jvdm convert` writes the same without these arrays, and with

converted/NAME.safetensors       parameters of the network NAME, as it has them
"""

import dataclasses
import json
import os
import shutil
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jvdm.errors import WeightsError
from jvdm.files import write_text
from jvdm.reading import read_json
from jvdm.recipes import nearest
from jvdm.stages import seen
from jvdm.weights import lora
from jvdm.weights.adapters import Network, read_changes
from jvdm.weights.convert import Report, Table, faults, leaves_of, published
from jvdm.weights.folder import INDEX, Manifest
from jvdm.weights.leaves import own_leaves
from jvdm.weights.lora import Adapter
from jvdm.weights.safetensors import flatten, listed, map_stored, save_stored

CONFIG = "config.json"  # of a component
ADAPTED = "model"  # the component that adapters change
CONVERTED = "converted"  # folder of what `jvdm convert` wrote
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


def warn_of_unread(folder: Path, index: Mapping[str, Any], read: Collection[str]) -> None:
    """Warns of components, and of other pipelines within a folder, that have no part in a model.

    Args:
        folder: The published folder.
        index: What its `model_index.json` says: `[library, class]` of every component.
        read: Components that are read.
    """
    parts = {name: said for name, said in index.items() if isinstance(said, list) and said[1:]}
    kinds = {name: str(said[1]) for name, said in parts.items() if said[1] and name not in read}
    for place in sorted(folder.glob(f"*/{INDEX}")):
        kinds[place.parent.name] = str(read_index(place.parent).get("_class_name"))
    if kinds:
        said = ", ".join(f"{name} ({kind[:80]})" for name, kind in kinds.items())
        warnings.warn(f"{folder}: {said} is not read; videos are made without it", stacklevel=4)


def check_class(path: Path, config: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuses the configuration of a class that is not known; what names none is not refused.

    Args:
        path: The file, for the message.
        config: What it says.
        known: Classes that are read as this component.

    Raises:
        WeightsError: If it names another class; it says which known one is nearest.
    """
    name = str(config.get("_class_name", known[0]))
    if name not in known:
        what = f"{path} is that of the class {name[:80]}"
        raise WeightsError(what, f"jvdm reads {', '.join(known)} there", nearest(name, known))


def class_faults(folder: Path, index: Mapping[str, Any]) -> list[WeightsError]:
    """Returns what is wrong with the classes that a folder names.

    Args:
        folder: The published folder.
        index: What its `model_index.json` says: `[library, class]` of every component.
    """
    found = []
    for name, said in index.items():
        path = folder / name / CONFIG
        if not isinstance(said, list) or not path.is_file():
            continue
        try:
            config = read_config(path)
        except WeightsError as error:
            found.append(error)
            continue
        own = config.get("_class_name") or (config.get("architectures") or [None])[0]
        if own and said[1:] != [own]:
            what = f"{path} is that of the class {str(own)[:80]}"
            why = f"{INDEX} says {name} is {', '.join(map(str, said[1:]))[:80]}"
            found.append(WeightsError(what, why, _FIX))
    return found


def check_latents(folder: Path, channels: Mapping[str, int], statistics: Mapping[str, Any]) -> None:
    """Refuses parts that are of different latents, and statistics that are none.

    Args:
        folder: The published folder, for the message.
        channels: Channels of the latents of every part, that of the autoencoder among them.
        statistics: Mean and deviation of every channel: `latents_mean` and `latents_std`.

    Raises:
        WeightsError: If channels differ, or statistics are not finite, not above 0 where they are
            deviations, or those of another number of channels.
    """
    if len(set(channels.values())) > 1:
        said = ", ".join(f"{count} of {part}" for part, count in channels.items())
        why = "the transformer makes what the autoencoder decodes"
        raise WeightsError(f"{folder}: latents have other channels: {said}", why, _FIX)
    count = next(iter(channels.values()))
    for name, values in statistics.items():
        array = np.asarray(values, np.float64)
        if array.shape != (count,):
            what = f"{folder}: {name} has the shape {array.shape}"
            raise WeightsError(what, f"latents have {count} channels", _FIX)
        if not np.isfinite(array).all() or name.endswith("std") and array.min() <= 0:
            what = f"{folder}: {name} is {np.array2string(array, precision=3, threshold=6)}"
            why = "latents are standardised by it: it is finite, and a deviation above 0"
            raise WeightsError(what, why, _FIX)


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Returns views of the arrays of a component, by their published names.

    Raises:
        WeightsError: If there are none, a file of several is missing or lacks an array, or a
            file is truncated, a git-lfs pointer or corrupt.
    """
    tensors, faults = find_tensors(folder)
    if faults:
        raise faults[0]
    return tensors


def find_tensors(folder: Path) -> tuple[dict[str, np.ndarray], list[WeightsError]]:
    """Returns views of the arrays that can be read, and what is wrong with every other file."""
    lists = sorted(folder.glob("*.safetensors.index.json"))
    files = sorted(folder.glob("*.safetensors"))
    if len(lists) > 1 or not lists and len(files) != 1:
        found = ", ".join(path.name for path in [*lists, *files]) or "none"
        why = "the arrays are in one file, or in several that one index lists"
        what = f"{folder} holds these safetensors files: {found}"
        return {}, [WeightsError(what, why, _FIX)]
    try:
        places = _places(lists[0]) if lists else {}
    except WeightsError as error:
        return {}, [error]
    tensors: dict[str, np.ndarray] = {}
    faults: list[WeightsError] = []
    for file in sorted(set(places.values())) if lists else [files[0].name]:
        try:
            shard = map_stored(folder / file)
        except WeightsError as error:
            faults.append(error)
            continue
        tensors |= shard
        lost = sorted(name for name, place in places.items() if place == file and name not in shard)
        if lost:
            what, why = f"{folder} lacks {listed(lost)}", f"{lists[0].name} lists them"
            faults.append(WeightsError(what, why, _FIX))
    return tensors, faults


def _places(path: Path) -> dict[str, str]:
    """Returns the file of every array, as an index says it.

    Raises:
        WeightsError: If it cannot be read, or names a file elsewhere.
    """
    places = read_config(path).get("weight_map")
    if not isinstance(places, dict) or not all(
        Path(str(file)).name == file for file in places.values()
    ):
        raise WeightsError(f"{path} lists no arrays", "`weight_map` says where each is", _FIX)
    return places


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
        save_stored(folder / f"{stem}{part}.safetensors", shard, {"format": "pt"})
        places |= {name: f"{stem}{part}.safetensors" for name in shard}
    if count > 1:
        total = sum(array.nbytes for array in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        write_text(folder / f"{stem}.safetensors.index.json", json.dumps(index, indent=2) + "\n")


def warn_of_float16(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Warns of arrays in float16: published weights are trained in bfloat16, which is wider."""
    if count := sum(array.dtype == np.float16 for array in tensors.values()):
        what = f"{path}: {count} arrays are float16, and such weights are trained in bfloat16"
        why = "float16 ends at 65504 and loses what is below 6e-8"
        warnings.warn(f"{what}; {why}: use the files in bfloat16 or float32", stacklevel=4)


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the parameters of a component are published, and under which names.

    Attributes:
        folder: Folder of the component.
        table: What its parameters are called.
        stem: Beginning of the names of its files.
        others: Arrays that lie beside its parameters and go along, such as latent statistics.
        tensors: The arrays, of one file that stands for the folder (`jvdm.weights.single`).
    """

    folder: str
    table: Table
    stem: str = "diffusion_pytorch_model"
    others: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    tensors: Mapping[str, np.ndarray] | None = None

    def read(self, folder: Path, expected: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the parameters that `folder` has there, of the network that has `expected`.

        They are read as they are needed (`jvdm.weights.leaves`). Which arrays there are is noted
        in the stages of the run (`jvdm.stages`).
        """
        path = folder / self.folder
        tensors = read_tensors(path) if self.tensors is None else self.tensors
        warn_of_float16(path, tensors)
        tree, report = leaves_of(self.table, tensors, expected, path)
        seen().arrays[self.folder] = str(report)
        return tree

    def faults(
        self, folder: Path, expected: Mapping[str, Any]
    ) -> tuple[dict[str, np.ndarray], list[WeightsError]]:
        """Returns the arrays in `folder`, and everything for which `read` would refuse them."""
        path = folder / self.folder
        tensors, broken = find_tensors(path)
        # Arrays of a broken file are missing, which its own fault says.
        return tensors, broken + faults(self.table, tensors, expected, path, whole=not broken)


def _read_converted(path: Path, expected: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters that `Published.write_converted` wrote, to be read as needed."""
    tree = own_leaves(path, expected, "convert the published folder again")
    count = len(flatten(tree))
    seen().arrays[f"{CONVERTED}/{path.name}"] = str(Report(count, count, 0))
    return tree


@dataclasses.dataclass(frozen=True)
class Published(Manifest):
    """What a published folder holds, said as in a folder of ours.

    Attributes:
        sources: Where the parameters of every component are; of one that is several networks,
            by the name of each.
        adapters: Low-rank changes of the network called `model`.
        separate: Whether they stay beside its parameters; else `parameters` adds them.
        single: Files whose arrays take the place of the folder's (`jvdm.weights.single`).
    """

    sources: Mapping[str, Source | Mapping[str, Source]] = dataclasses.field(default_factory=dict)
    adapters: tuple[Adapter, ...] = ()
    separate: bool = False
    single: tuple[Path, ...] = ()

    def parameters(
        self, folder: str | Path, name: str, expected: Mapping[str, Any] | None = None
    ) -> tuple[Path, dict[str, Any]]:
        """Returns the parameters of a component, in the number types of the files.

        They are read as they are needed: by `numpy.asarray`, or part by part
        (`jvdm.weights.leaves`), which is where values that are not finite are refused.

        Args:
            folder: The published folder.
            name: Name of the component.
            expected: The parameters of its network, whose leaves have a `shape`.

        Raises:
            WeightsError: If a file is missing or broken, or an array is missing, left over or of
                another shape.
        """
        assert expected is not None, "how many layers there are is known from the network"
        path, tree = self._parameters(Path(folder), name, expected)
        if name != ADAPTED or not self.adapters or self.separate:
            return path, tree
        changes, made = self.changes(expected), {}
        for part, network in self.networks(expected).items():
            mine = [
                (found.get(part, {}), adapter.strength)
                for adapter, found in zip(self.adapters, changes, strict=True)
            ]
            made[part] = lora.fused(tree[part] if part else tree, network.table, mine)
        return path, made.get("", made)

    def changes(self, expected: Mapping[str, Any]) -> list[dict[str, lora.Changes]]:
        """Reads what every adapter changes, by network and published name.

        Args:
            expected: The parameters of the network called `model`, whose leaves have a `shape`.

        Raises:
            WeightsError: If a file is broken or of another network.
            ConfigError: If it is not said which network it is of.
        """
        networks, found = self.networks(expected), []
        for adapter in self.adapters:
            found.append(read_changes(adapter, networks))
            counts = (f"{len(one)} arrays of {part or ADAPTED}" for part, one in found[-1].items())
            said = f"{' and '.join(counts)} changed, strength {adapter.strength:g}"
            seen().arrays[adapter.label] = said
        return found

    def factors(self, expected: Mapping[str, Any]) -> list[lora.Factors]:
        """Reads what every adapter changes, as the network called `model` has it.

        Raises:
            WeightsError: If a file is broken or of another network.
        """
        networks, made = self.networks(expected), []
        for found in self.changes(expected):
            parts = {
                part: lora.factors(one, networks[part].table, networks[part].expected)
                for part, one in found.items()
            }
            both = ({part: one[i] for part, one in parts.items()} for i in (0, 1))
            made.append(parts.get("") or lora.Factors(*both))
        return made

    def networks(self, expected: Mapping[str, Any]) -> dict[str, Network]:
        """Returns the networks of the component called `model`, by name; "" if it is one."""
        source = self.sources[ADAPTED]
        if isinstance(source, Source):
            return {"": Network(source.folder, source.table, expected)}
        return {
            part: Network(one.folder, one.table, expected[part]) for part, one in source.items()
        }

    def _parameters(
        self, path: Path, name: str, expected: Mapping[str, Any]
    ) -> tuple[Path, dict[str, Any]]:
        """Reads the parameters of a component as they were published."""
        source = self.sources[name]
        if os.path.isfile(file := path / CONVERTED / f"{name}.safetensors"):
            return file, _read_converted(file, expected)
        if isinstance(source, Source):
            return path / source.folder, source.read(path, expected)
        return path, {part: one.read(path, expected[part]) for part, one in source.items()}

    def found(
        self, folder: Path, expected: Mapping[str, Any]
    ) -> dict[str, tuple[Mapping[str, np.ndarray], list[WeightsError]]]:
        """Returns the arrays of all components, and what `parameters` would refuse, by place.

        Args:
            folder: The published folder.
            expected: The parameters of all networks, whose leaves have a `shape`.
        """
        found: dict[str, tuple[Mapping[str, np.ndarray], list[WeightsError]]] = {}
        for name in self.sources:
            if not os.path.isfile(file := folder / CONVERTED / f"{name}.safetensors"):
                parts = self._parts(name, expected[name])
                found |= {source.folder: source.faults(folder, own) for source, own in parts}
                continue
            tree, broken = {}, []
            try:
                tree = flatten(_read_converted(file, expected[name]))
                for leaf in tree.values():
                    np.asarray(leaf)
            except WeightsError as error:
                broken = [error]
            arrays = {key: leaf.parts[0] for key, leaf in tree.items()}
            found[f"{CONVERTED}/{file.name}"] = arrays, broken
        return found

    def _parts(self, name: str, params: Mapping[str, Any]) -> list[tuple[Source, Any]]:
        """Returns the sources of a component, and what of its parameters is in each."""
        source = self.sources[name]
        if isinstance(source, Source):
            return [(source, params)]
        return [(one, params[part]) for part, one in source.items()]

    def write(self, folder: Path, params: Mapping[str, Any], settings: Path) -> None:
        """Writes a published folder with these parameters.

        Args:
            folder: Where to write; made if missing.
            params: Parameters by component, in the number types that are to be stored.
            settings: Published folder of the same networks, whose other files go along; it may
                be `folder` itself.
        """
        self.write_settings(folder, settings)
        for name in self.sources:
            self.write_component(folder, name, params[name])

    def write_settings(self, folder: Path, settings: Path) -> None:
        """Copies the files of `settings`, a published folder, that hold no arrays."""
        for path in sorted(settings.rglob("*")):
            place = folder / path.relative_to(settings)
            is_weights = path.name.endswith((".safetensors", ".safetensors.index.json"))
            if path.is_file() and not is_weights and place != path:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, place)

    def write_component(self, folder: Path, name: str, params: Mapping[str, Any]) -> None:
        """Writes the parameters of a component as they are published."""
        for source, own in self._parts(name, params):
            tensors = {**published(source.table, own), **source.others}
            write_tensors(folder / source.folder, tensors, source.stem)

    def write_converted(self, folder: Path, name: str, params: Mapping[str, Any]) -> None:
        """Writes the parameters of a component as its network has them; `parameters` reads them."""
        save_stored(folder / CONVERTED / f"{name}.safetensors", flatten(params), {})
        for source, _ in self._parts(name, params):
            if source.others:  # stays where a family looks for it
                write_tensors(folder / source.folder, source.others, source.stem)
