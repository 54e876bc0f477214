"""From trained parameters to a weights folder that `jvdm.load` reads."""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jvdm.arrays import PyTree
from jvdm.errors import ConfigError, WeightsError
from jvdm.files import probe_writable
from jvdm.weights import safetensors
from jvdm.weights.folder import Defaults, Manifest, fields_of, read_manifest, write_manifest

_STATISTICS = ("latent_mean", "latent_std")


@dataclasses.dataclass(frozen=True)
class Packaging:
    """How trained parameters become a folder."""

    family: str
    """Name of the model that the folder belongs to."""
    defaults: Defaults
    """Settings of a generation run, and the sizes trained on."""
    parts: tuple[str, ...] = ()
    """Weights folders whose other components go along, unchanged."""
    quantize: Literal["int8"] | None = None
    """Store matrices in 8 bits with a scale per output channel; else float16."""


class Component(NamedTuple):
    """A part of a model: the frozen dataclass that describes it, and its parameters."""

    module: Any
    params: PyTree


Files = Mapping[str, Mapping[str, Component]]
"""Components by file stem and name; a file of one component holds its bare tree."""


def check_package(folder: Path, packaging: Packaging, files: Files) -> None:
    """Refuses what `write_package` could not write, before anything is trained.

    Args:
        folder: Where the weights will be.
        packaging: Family, defaults and parts.
        files: What will be written; parameters may be shapes.

    Raises:
        WeightsError: If a field of a component, such as an attention policy, cannot be
            written into a manifest, or a part is no weights folder or lacks weights.
        ConfigError: If `folder` cannot be written, or is one of the parts.
    """
    mine = _described(files)
    if folder.exists():
        probe_writable(folder)
    for part in map(Path, packaging.parts):
        if part.resolve() == folder.resolve():
            why = "the weights of this run would be written over it"
            raise ConfigError(f"{part} is to go along", why, "use another --workdir")
        _taken(part, mine)


def write_package(
    folder: Path,
    packaging: Packaging,
    files: Files,
    summary: Mapping[str, Any],
    vocabulary: Sequence[str],
) -> None:
    """Writes `files` and a manifest, and copies what `packaging.parts` add.

    Args:
        folder: Where to write; made if missing.
        packaging: Family, defaults and parts.
        files: Components and their parameters.
        summary: Numbers that were measured, for the manifest's notes; of an autoencoder
            also `latent_mean` and `latent_std` per channel, which else come from the
            first part that has them.
        vocabulary: Words in the order of their token ids.
    """
    folder.mkdir(parents=True, exist_ok=True)
    components = _described(files)
    mean, std = (list(summary.get(name, ())) for name in _STATISTICS)
    for part in map(Path, packaging.parts):
        manifest, found = _taken(part, components)
        components = components | {
            name: manifest.components[name] for name in manifest.components.keys() - components
        }
        for path in found:
            shutil.copyfile(path, folder / path.name)
        mean, std = mean or manifest.latent_mean, std or manifest.latent_std
    for stem, parts in files.items():
        trees = {name: component.params for name, component in parts.items()}
        tree = jax.tree.map(np.asarray, trees if len(trees) > 1 else trees.popitem()[1])
        safetensors.save(folder / f"{stem}.safetensors", tree, quantize=packaging.quantize)
    defaults = packaging.defaults
    manifest = Manifest(
        family=packaging.family,
        components=components,
        latent_mean=tuple(mean),
        latent_std=tuple(std),
        defaults=defaults,
        vocabulary=tuple(vocabulary),
        trained_frames=defaults.num_frames,
        trained_sizes=((defaults.height, defaults.width),),
        notes={name: value for name, value in summary.items() if name not in _STATISTICS},
    )
    write_manifest(folder, manifest)


def _described(files: Files) -> dict[str, Any]:
    """Returns the fields of every component, as the manifest holds them."""
    return {
        name: fields_of(component.module)
        for parts in files.values()
        for name, component in parts.items()
    }


def _taken(part: Path, mine: Mapping[str, Any]) -> tuple[Manifest, list[Path]]:
    """Returns the manifest of a part and the files of its components that are not `mine`."""
    manifest = read_manifest(part)
    wanted = manifest.components.keys() - mine
    found = [part / f"{name}.safetensors" for name in wanted]
    found = [path for path in found if path.is_file()]
    held = {path.stem for path in found}
    for path in found:  # a file may hold several components, by name
        held |= {name.partition("/")[0] for name in safetensors.read_header(path)[0]}
    if missing := ", ".join(sorted(wanted - held)):
        what = f"{part} has no weights of {missing}, which its manifest names"
        raise WeightsError(what, "they go along", "copy the whole folder, or train it again")
    return manifest, found
