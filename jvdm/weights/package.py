"""From trained parameters to a weights folder that `jvdm.load` reads."""

import dataclasses
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jvdm.arrays import PyTree
from jvdm.errors import ConfigError, WeightsError
from jvdm.files import probe_writable
from jvdm.values import to_data
from jvdm.weights import safetensors
from jvdm.weights.folder import (
    Defaults,
    Manifest,
    find,
    identity,
    read_manifest,
    write_checksums,
    write_manifest,
)

_STATISTICS = ("latent_mean", "latent_std")


@dataclasses.dataclass(frozen=True)
class Packaging:
    """How trained parameters become a folder."""

    family: str
    """Name of the model that the folder belongs to."""
    defaults: Defaults
    """Sizes of a generation run, and those trained on."""
    parts: tuple[str, ...] = ()
    """Weights folders, or names of embedded ones, whose other components go along, unchanged."""
    quantize: Literal["int8"] | None = None
    """Store matrices in 8 bits with a scale per output channel; else float16."""


class Component(NamedTuple):
    """A part of a model: the frozen dataclass that describes it, and its parameters."""

    module: Any
    params: PyTree


Components = Mapping[str, Component]
"""Components by name, which is also that of their file."""


def check_package(
    folder: Path, packaging: Packaging, components: Components, rules: Mapping[str, Any]
) -> dict[str, Path]:
    """Refuses what `write_package` could not write, before anything is trained.

    Args:
        folder: Where the weights will be.
        packaging: Family, defaults and parts.
        components: What will be written; parameters may be shapes.
        rules: Process, prediction and sampling as JSON, if there is a denoiser.

    Returns:
        From which folder each component comes that goes along.

    Raises:
        WeightsError: If a part is no weights folder, lacks weights or cannot be built, or a
            system lacks a network.
        ConfigError: If a field of a component, such as an attention policy, cannot be written
            into a manifest, or `folder` cannot be written or is one of the parts.
    """
    names, taken = set(_described(components)), {}
    if folder.exists():
        probe_writable(folder)
    for part in map(find, packaging.parts):
        if part.resolve() == folder.resolve():
            why = "the weights of this run would be written over it"
            raise ConfigError(f"{part} is to go along", why, "use another --workdir")
        manifest, wanted = _taken(part, names | taken.keys())
        identity(part)
        for name in wanted:
            manifest.component(name)
            taken[name] = part
    if rules and (lacking := sorted({"text", "model", "vae"} - names - taken.keys())):
        fix = "name a weights folder that has it in --package.parts"
        raise WeightsError(f"{', '.join(lacking)} would be missing", "a system is trained", fix)
    return taken


def write_package(
    folder: Path,
    packaging: Packaging,
    components: Components,
    summary: Mapping[str, Any],
    rules: Mapping[str, Any],
) -> None:
    """Writes components and a manifest, and copies what `packaging.parts` add.

    Args:
        folder: Where to write; made if missing.
        packaging: Family, defaults and parts.
        components: Networks and their parameters.
        summary: Numbers that were measured, for the manifest's notes; of an autoencoder
            also `latent_mean` and `latent_std` per channel, which else come from the
            first part that has them.
        rules: Process, prediction and sampling as JSON; empty takes those of the parts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    described, files = _described(components), {}
    mean, std = (list(summary.get(name, ())) for name in _STATISTICS)
    for part in map(find, packaging.parts):
        manifest, wanted = _taken(part, described)
        for name in wanted:
            described[name] = manifest.components[name]
            files |= {name: manifest.files[name]} if name in manifest.files else {}
            shutil.copyfile(part / manifest.file_of(name), folder / manifest.file_of(name))
        mean, std = mean or manifest.latent_mean, std or manifest.latent_std
        rules = rules or manifest.rules
    for name, component in components.items():
        tree = jax.tree.map(np.asarray, component.params)
        safetensors.save(folder / f"{name}.safetensors", tree, quantize=packaging.quantize)
    defaults = packaging.defaults
    manifest = Manifest(
        family=packaging.family,
        components=described,
        latent_mean=tuple(mean),
        latent_std=tuple(std),
        defaults=defaults,
        trained_frames=defaults.num_frames,
        trained_sizes=((defaults.height, defaults.width),),
        rules=rules,
        files=files,
        notes={name: value for name, value in summary.items() if name not in _STATISTICS},
    )
    write_manifest(folder, manifest)
    write_checksums(folder)


def _described(components: Components) -> dict[str, Any]:
    """Returns class and fields of every component, as the manifest holds them."""
    return {name: to_data(component.module, name) for name, component in components.items()}


def _taken(part: Path, mine: Collection[str]) -> tuple[Manifest, list[str]]:
    """Returns the manifest of a part and its components that are not `mine`."""
    manifest = read_manifest(part)
    wanted = [name for name in manifest.components if name not in mine]
    missing = [name for name in wanted if not (part / manifest.file_of(name)).is_file()]
    if missing:
        what = f"{part} has no weights of {', '.join(missing)}, which its manifest names"
        raise WeightsError(what, "they go along", "copy the whole folder, or train it again")
    for name in wanted:
        safetensors.read_header(part / manifest.file_of(name))
    return manifest, wanted
