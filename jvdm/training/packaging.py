"""From trained parameters to a weights folder that `jvdm.load` reads."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np

from jvdm.arrays import PyTree
from jvdm.weights import safetensors
from jvdm.weights.folder import Defaults, Manifest, fields_of, read_manifest, write_manifest
from jvdm.world.vocabulary import WORDS


@dataclasses.dataclass(frozen=True)
class Packaging:
    """How an objective's weights become a folder."""

    family: str
    """Name of the model that the folder belongs to."""
    defaults: Defaults
    """Settings of a generation run, and the sizes trained on."""
    parts: tuple[str, ...] = ()
    """Weights folders whose other components go along, unchanged."""
    quantize: Literal["int8"] | None = None
    """Store matrices in 8 bits with a scale per output channel; else float16."""


def write_package(
    folder: Path,
    packaging: Packaging,
    files: Mapping[str, PyTree],
    modules: Mapping[str, nn.Module],
    statistics: tuple[Any, Any] | None = None,
) -> None:
    """Writes `files` and a manifest, and copies what `packaging.parts` add.

    Args:
        folder: Where to write; made if missing.
        packaging: Family, defaults and parts.
        files: Parameters by file stem, such as `{"vae": params}`.
        modules: The module of every component in `files`.
        statistics: Mean and standard deviation of the latents per channel; None
            takes those of the first part that has an autoencoder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    components: dict[str, Any] = {name: fields_of(module) for name, module in modules.items()}
    mean, std = (
        ([], []) if statistics is None else (np.asarray(part).tolist() for part in statistics)
    )
    for part in map(Path, packaging.parts):
        manifest = read_manifest(part)
        for name in manifest.components.keys() - components.keys():
            components[name] = manifest.components[name]
            source = part / f"{name}.safetensors"
            if source.is_file():
                shutil.copyfile(source, folder / source.name)
        mean, std = mean or manifest.latent_mean, std or manifest.latent_std
    for stem, tree in files.items():
        tree = jax.tree.map(np.asarray, tree)
        safetensors.save(folder / f"{stem}.safetensors", tree, quantize=packaging.quantize)
    defaults = packaging.defaults
    manifest = Manifest(
        family=packaging.family,
        components=components,
        latent_mean=tuple(mean),
        latent_std=tuple(std),
        defaults=defaults,
        vocabulary=WORDS,
        trained_frames=defaults.num_frames,
        trained_sizes=((defaults.height, defaults.width),),
    )
    write_manifest(folder, manifest)
