"""Single files of published networks, known by the names of their arrays.

A file of the original code of Wan or LTX-Video, or one that was made for ComfyUI, holds one
network or several, and says nothing of levels, prompts or what else a folder of Diffusers says. So
it takes the place of the arrays of such a folder: `jvdm convert FOLDER NEW --files FILE ...`.
"""

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jvdm.errors import ConfigError, WeightsError
from jvdm.weights.adapters import said_by
from jvdm.weights.convert import Table, published_name
from jvdm.weights.diffusers import ADAPTED, Published, Source
from jvdm.weights.folder import is_published
from jvdm.weights.safetensors import map_stored, read_header

_VAE, _MODEL = "vae.", "model.diffusion_model."  # what names begin with where there are several
_ENOUGH = 0.5  # share of the names of a network that must be there to know it

Tensors = Mapping[str, np.ndarray]


def with_files(manifest: Published, files: Sequence[Path]) -> Published:
    """Returns what a folder holds with the arrays of files in the place of its own.

    Args:
        manifest: What the folder holds.
        files: Safetensors files. Each has the arrays of one network, or of several; where two are
            alike (Wan 2.2 A14B) its name says `high_noise` or `low_noise`.

    Raises:
        WeightsError: If a file is broken, of PyTorch's own format, or of no network of the folder.
        ConfigError: If two files hold the same network.
    """
    found: dict[str, Source] = {}
    for file in files:
        for source in _held(file, manifest):
            if source.folder in found:
                what = f"{file} and another file hold the arrays of {source.folder}"
                raise ConfigError(what, "one of them is used", "leave the other out")
            found[source.folder] = source

    def replaced(source: Source) -> Source:
        return found.get(source.folder, source)

    sources = {
        name: replaced(one)
        if isinstance(one, Source)
        else {part: replaced(source) for part, source in one.items()}
        for name, one in manifest.sources.items()
    }
    return dataclasses.replace(manifest, sources=sources, single=tuple(files))


def folder_of(place: Path) -> tuple[Path, tuple[Path, ...]]:
    """Returns the folder that says what a model is, and the single file that is read of it, if any.

    Args:
        place: A weights folder, or a single file in a published one.

    Raises:
        WeightsError: If it is a file that is broken, or nothing beside it says the rest.
    """
    if not os.path.isfile(place):  # False too where no file can have that name
        return place, ()
    _check_kind(place)
    header, metadata = read_header(place)
    if is_published(place.parent):
        return place.parent, (place,)
    first = ", ".join(sorted(header)[:3])
    what = f"{place} holds {len(header)} arrays such as {first[:200]}"
    if described := _described(metadata):
        what = f"{what}; its metadata describe {described}"
    why = "text encoder, tokenizer, levels and what else a model needs are in no such file"
    fix = "fetch the folder of Diffusers of this model and put the file into it, or write both as"
    raise WeightsError(what, why, f"{fix} one: jvdm convert FOLDER NEW --files {place}")


def _described(metadata: Mapping[str, str]) -> str:
    """Returns which parts the configuration in the metadata of a file describes, "" for none."""
    try:
        config = json.loads(metadata.get("config", "{}"))
    except ValueError:
        return ""
    return ", ".join(map(str, config))[:200] if isinstance(config, dict) else ""


def _check_kind(file: Path) -> None:
    if file.suffix in (".pth", ".pt", ".ckpt", ".bin"):
        fix = "write it anew: safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW)"
        raise WeightsError(f"{file} is a file of PyTorch", "safetensors files are read", fix)


def _held(file: Path, manifest: Published) -> list[Source]:
    """Returns the sources whose arrays are in a file, with these."""
    _check_kind(file)
    tensors = map_stored(file.expanduser())
    sources = [
        source
        for one in manifest.sources.values()
        for source in ([one] if isinstance(one, Source) else one.values())
    ]
    parts = {source.folder: _part(source, tensors) for source in sources}
    held = [one for one in sources if _share(one.table, parts[one.folder]) > _ENOUGH]
    if len({id(source.table) for source in held}) < len(held):
        alike = {} if isinstance(model := manifest.sources[ADAPTED], Source) else model
        said = [alike[name].folder for name in said_by(file.name, alike)]
        held = [one for one in held if one.folder in said]
    if not held:
        first = ", ".join(sorted(tensors)[:3])
        what = f"{file} holds {len(tensors)} arrays such as {first[:200]}"
        places = ", ".join(source.folder for source in sources)
        why = f"they are those of none of {places} of this folder"
        fix = "give a folder of the same model; of two networks a name says high_noise or low_noise"
        raise WeightsError(what, why, fix)
    return [_with(source, parts[source.folder]) for source in held]


def _part(source: Source, tensors: Tensors) -> Tensors:
    """Returns the arrays of a file that may be those of a component."""
    if source.folder == "vae" and any(name.startswith(_VAE) for name in tensors):
        return {name[len(_VAE) :]: x for name, x in tensors.items() if name.startswith(_VAE)}
    return {name: x for name, x in tensors.items() if not name.startswith(_VAE)}


def _share(table: Table, tensors: Tensors) -> float:
    """Returns which share of the names of a network is there."""
    names = [published_name(table, name.removeprefix(_MODEL)) for name in tensors]
    known = {re.sub(r"\d+", "{}", rule.theirs) for rule in table.rules}
    return len(known & {re.sub(r"\d+", "{}", name) for name in names}) / len(known)


def _with(source: Source, tensors: Tensors) -> Source:
    """Returns a source with arrays; what lies beside its parameters is theirs too."""
    names = {published_name(source.table, name): array for name, array in tensors.items()}
    others = {name: np.asarray(names.get(name, array)) for name, array in source.others.items()}
    return dataclasses.replace(source, tensors=tensors, others=others)
