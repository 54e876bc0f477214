"""The verb `inspect`: which arrays a file or folder holds, and whether they are sound."""

import dataclasses
import difflib
import hashlib
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jvdm import record
from jvdm.errors import WeightsError
from jvdm.pipeline.loading import manifest_of, system_of
from jvdm.pricing import stored_shapes
from jvdm.training.checkpoint import finished_steps, read_checkpoint
from jvdm.weights import safetensors
from jvdm.weights.diffusers import Published, class_faults, find_tensors, read_index
from jvdm.weights.folder import (
    CHECKSUMS,
    MANIFEST,
    differences,
    digests,
    is_published,
    read_manifest,
    resolved,
)

Arrays = Mapping[str, np.ndarray]

CHECKPOINTS = "checkpoints"  # folder of a work directory
EXPERIMENT = "experiment.json"  # file of a work directory
SHOWN_DIGITS = 12  # of a sha256, in the table for people


@dataclasses.dataclass(frozen=True)
class InspectOptions:
    """What to look at."""

    path: Path
    """Safetensors file, weights folder or name of embedded ones, published folder of Diffusers,
    checkpoint, work directory of a training run, or record of a video."""
    step: int | None = None
    """Which checkpoint of a run; the newest when left out."""
    verify: bool = False
    """Compare the files of a weights folder with the SHA256SUMS that its export wrote."""


def run(options: InspectOptions) -> dict[str, Any]:
    """Describes what is at a path.

    Returns:
        `kind`; `step` and `steps` of a run; `about` (the manifest, or the experiment and the
        versions); `arrays`, sorted by name, each with `name`, `shape`, `dtype`, `sha256`,
        `bytes` and `non_finite`; and their `total`. The sha256 is that of the
        little-endian values in row-major order; random keys count as their key data.
        `ok` says that all are finite, and with `verify` that there are no `differences`.
        A published folder has `components` and the `sha256` of its files instead of `arrays`,
        and `faults`: everything for which it would be refused.

    Raises:
        WeightsError: If nothing is there, or nothing that jvdm knows, or it is broken.
        ConfigError: If a `.json` file is no record, or a folder that of an unknown pipeline.
        CheckpointError: If a run has no such checkpoint.
    """
    path = resolved(options.path)
    if not os.path.exists(path):
        raise WeightsError(f"{path} does not exist", fix=_similar(path))
    if options.verify:
        wrong = differences(path, digests(path))
        described = _published(path) if is_published(path) else _weights_folder(path)
        return described | {"differences": wrong, "ok": described["ok"] and not wrong}
    if path.suffix == ".json" and path.is_file():
        return _describe("record", path, {}, record.read(path).as_data())
    if path.is_file():
        return _describe("safetensors file", path, safetensors.load_stored(path))
    if (path / MANIFEST).is_file():
        return _weights_folder(path)
    if is_published(path):
        return _published(path)
    if (path / CHECKPOINTS).is_dir() or (path / EXPERIMENT).is_file():
        return _run("work directory", path, path / CHECKPOINTS, options.step)
    if finished_steps(path):
        return _run("checkpoints", path, path, options.step)
    name, parent = path.absolute().name, path.absolute().parent
    if name in map(str, finished_steps(parent)):
        return _run("checkpoint", path, parent, int(name))
    raise WeightsError(
        f"{path} is a folder that jvdm does not know",
        f"a weights folder holds {MANIFEST}, a work directory {CHECKPOINTS}/, and a checkpoint "
        "is a folder named by its step",
        "give one of these, or a .safetensors file",
    )


def text(result: dict[str, Any]) -> str:
    """Returns the description as a table, one array per line."""
    total = result["total"]
    lines = [f"{result['kind']} {result['path']}"]
    if "step" in result:
        others = ", ".join(map(str, result["steps"]))
        lines.append(f"step {result['step']} (checkpoints: {others})")
    if family := result["about"].get("family"):
        lines.append(f"family {family}")
    if "components" in result:
        lines += _said_of_published(result)
    width = max((len(entry["name"]) for entry in result["arrays"]), default=0)
    for entry in result["arrays"]:
        shape = "x".join(map(str, entry["shape"])) or "scalar"
        bad = f"  {entry['non_finite']} NON-FINITE" if entry["non_finite"] else ""
        digest = entry["sha256"][:SHOWN_DIGITS]
        lines.append(f"  {entry['name']:<{width}}  {entry['dtype']:<8}  {shape:<16}  {digest}{bad}")
    lines.append(
        f"{total['arrays']} arrays, {total['parameters']:,} values, {total['bytes'] / 1e6:.2f} MB, "
        f"{total['non_finite']} not finite"
    )
    lines += [f"WRONG: {fault}" for fault in result.get("faults", ())]
    if result["kind"] == "record":
        about = result["about"]
        shown = {"status": about["status"], "created": about["created"]} | about["settings"]
        lines[1:] = [f"  {name:<20}  {value}" for name, value in shown.items()]
    if "differences" in result:
        lines += result["differences"] or [f"all files are those that {CHECKSUMS} names"]
    return "\n".join(lines)


def _weights_folder(path: Path) -> dict[str, Any]:
    """Describes all files of a weights folder; names begin with the file's name."""
    about = dataclasses.asdict(read_manifest(path))
    arrays: dict[str, np.ndarray] = {}
    for file in sorted(path.glob("*.safetensors")):
        stored = safetensors.load_stored(file)
        arrays |= {f"{file.stem}/{name}": array for name, array in stored.items()}
    return _describe("weights folder", path, arrays, about)


def _published(path: Path) -> dict[str, Any]:
    """Describes a published folder: what it is, and everything that is wrong with it."""
    faults = class_faults(path, read_index(path))
    try:
        manifest = manifest_of(path)
        assert isinstance(manifest, Published)
        system = system_of(manifest)
        read = manifest.found(path, stored_shapes(system))
        about = dataclasses.asdict(dataclasses.replace(manifest, sources={}))
        rules = {"levels": system.sampling.levels, "solver": system.sampling.solver}
        about |= {name: repr(rule) for name, rule in rules.items()}
    except WeightsError as error:  # what files hold can be said without knowing what they should
        faults.append(error)
        about = {}
        folders = sorted(place.parent for place in path.glob("*/config.json"))
        read = {folder.name: find_tensors(folder) for folder in folders}
    components = {}
    for folder, (tensors, broken) in read.items():
        faults += [error for error in broken if str(error) not in map(str, faults)]
        components[folder] = {
            "arrays": len(tensors),
            "parameters": sum(array.size for array in tensors.values()),
            "bytes": sum(array.nbytes for array in tensors.values()),
            "dtypes": sorted({array.dtype.name for array in tensors.values()}),
            "non_finite": sum(_non_finite(array) for array in tensors.values()),
        }
    names = ("arrays", "parameters", "bytes", "non_finite")
    total = {name: sum(one[name] for one in components.values()) for name in names}
    result = {"kind": "published folder", "path": str(path), "about": about, "arrays": []}
    result |= {"components": components, "sha256": digests(path), "total": total}
    return result | {"faults": list(map(str, faults)), "ok": not faults}


def _said_of_published(result: dict[str, Any]) -> list[str]:
    """Returns lines about the sizes, rules, parts and files of a published folder."""
    about, lines = result["about"], []
    if about:
        sizes = ", ".join(f"{height}x{width}" for height, width in about["trained_sizes"])
        lines += [f"trained on {about['trained_frames']} frames of {sizes}"]
        lines += [f"{name} {about[name]}" for name in ("levels", "solver")]
    for folder, part in result["components"].items():
        counts = f"{part['arrays']:>5} arrays  {part['parameters']:>14,} values"
        types = f"{part['bytes'] / 1e6:>10.2f} MB  {', '.join(part['dtypes'])}"
        lines.append(f"  {folder:<14}  {counts}  {types}")
    return lines + [f"  {hash[:SHOWN_DIGITS]}  {name}" for name, hash in result["sha256"].items()]


def _run(kind: str, path: Path, checkpoints: Path, step: int | None) -> dict[str, Any]:
    """Describes one checkpoint of a training run."""
    arrays, meta = read_checkpoint(checkpoints, step)
    steps = finished_steps(checkpoints)
    about = {name: meta.get(name, {}) for name in ("experiment", "versions")}
    chosen = {"step": steps[-1] if step is None else step, "steps": steps}
    return _describe(kind, path, arrays, about) | chosen


def _describe(
    kind: str, path: Path, arrays: Arrays, about: dict[str, Any] | None = None
) -> dict[str, Any]:
    entries = [_entry(name, np.asarray(array)) for name, array in sorted(arrays.items())]
    total = {
        "arrays": len(entries),
        "parameters": sum(int(np.prod(entry["shape"])) for entry in entries),
        "bytes": sum(entry["bytes"] for entry in entries),
        "non_finite": sum(entry["non_finite"] for entry in entries),
    }
    result = {"kind": kind, "path": str(path), "about": about or {}}
    return result | {"arrays": entries, "total": total, "ok": not total["non_finite"]}


def _entry(name: str, array: np.ndarray) -> dict[str, Any]:
    return {
        "name": name,
        "shape": list(array.shape),
        "dtype": array.dtype.name,
        "sha256": hashlib.sha256(_little_endian(array)).hexdigest(),
        "bytes": array.nbytes,
        "non_finite": _non_finite(array),
    }


def _non_finite(array: np.ndarray) -> int:
    is_number = array.dtype.kind not in "biu"
    return array.size - int(np.count_nonzero(np.isfinite(array))) if is_number else 0


def _little_endian(array: np.ndarray) -> bytes:
    if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big"):
        array = array.byteswap()
    return array.tobytes()


def _similar(path: Path) -> str:
    """Returns advice with the names that are nearest to a path that does not exist."""
    parent = next(folder for folder in path.absolute().parents if os.path.isdir(folder))
    children: Iterable[str] = (child.name for child in parent.iterdir())
    missing = path.absolute().relative_to(parent).parts[0]
    near = difflib.get_close_matches(missing, list(children), n=3)
    if near:
        return f"did you mean {' or '.join(str(parent / name) for name in near)}?"
    return f"{parent} holds nothing of a similar name"
