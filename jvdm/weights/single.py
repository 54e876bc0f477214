"""Single files of published networks, known by the names of their arrays.

A file of the original code of Wan or LTX-Video, or one that was made for ComfyUI, holds one
network or several, and says nothing of levels, prompts or what else a folder of Diffusers says. So
it takes the place of the arrays of such a folder: `jvdm convert FOLDER NEW --files FILE ...`. Where
a family knows the rest (`single` in `configs/families`), a folder that says it is kept:

CACHE/single/KEY   what a folder of Diffusers holds but arrays, with links to a text encoder
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jvdm.cache import cache_folder
from jvdm.errors import ConfigError, WeightsError
from jvdm.files import appearing, unwritable, write_text
from jvdm.recipes import family_modules
from jvdm.weights.adapters import said_by
from jvdm.weights.convert import Table, published_name
from jvdm.weights.diffusers import ADAPTED, CONFIG, Published, Source, write_tensors
from jvdm.weights.folder import is_published
from jvdm.weights.safetensors import map_stored, read_header

_VAE, _MODEL = "vae.", "model.diffusion_model."  # what names begin with where there are several
_ENDING = ".safetensors"
_ENOUGH = 0.5  # share of the names of a network that must be there to know it

_LINKED = {
    "text_encoder": (CONFIG, "*.safetensors", "*.safetensors.index.json"),
    "tokenizer": ("tokenizer.json", "spiece.model"),
}
"""Files of another folder that a single file is read with."""

Tensors = Mapping[str, np.ndarray]


class Described(NamedTuple):
    """What a family says of a single file, as its `single(shapes, metadata)` returns it.

    Attributes:
        configs: What the files of a folder of Diffusers would say, by their names.
        others: Arrays beside the parameters of a component, such as latent statistics: what
            Diffusers calls them, and their names in the file, by component.
    """

    configs: Mapping[str, Mapping[str, Any]]
    others: Mapping[str, Mapping[str, str]]


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
    made = dataclasses.replace(manifest, sources=sources, single=tuple(files))
    return _standardised(made, manifest)


def _standardised(made: Published, before: Published) -> Published:
    """Returns a manifest with the statistics of latents of its own autoencoder."""
    own, old = (one.sources.get("vae") for one in (made, before))
    assert isinstance(own, Source) and isinstance(old, Source)
    if own is old or not {"latents_mean", "latents_std"} <= own.others.keys():
        return made  # they are not among the arrays, or nothing has changed
    scale = np.asarray(before.latent_std) / old.others["latents_std"]
    mean, std = own.others["latents_mean"], own.others["latents_std"] * scale
    both = (tuple(array.astype(float).tolist()) for array in (mean, std))
    return dataclasses.replace(made, **dict(zip(("latent_mean", "latent_std"), both, strict=True)))


def divided(path: str | Path | None) -> tuple[str | Path | None, Path | None]:
    """Returns a file and the folder of its text encoder, of `FILE.safetensors:FOLDER`."""
    file, mark, folder = str(path).partition(f"{_ENDING}:")
    return (f"{file}{_ENDING}", Path(folder)) if mark else (path, None)


def folder_of(place: Path, text_encoder: Path | None = None) -> tuple[Path, tuple[Path, ...]]:
    """Returns the folder that says what a model is, and the single file that is read of it, if any.

    Args:
        place: A weights folder, or a single file, in a published folder or of a known family.
        text_encoder: Folder with `text_encoder` and `tokenizer`, or with the files of both, for a
            single file elsewhere; None is the folder of the file.

    Raises:
        WeightsError: If it is a file that is broken, or nothing beside it says the rest.
        ConfigError: If a text encoder is given where the folder has its own, or it is none.
    """
    is_file = os.path.isfile(place)  # False too where no file can have that name
    if text_encoder is not None and (not is_file or is_published(place.parent)):
        what = f"the text encoder of {text_encoder} was given for {place}"
        why = "it is for a single file that lies in no folder of Diffusers"
        raise ConfigError(what, why, f"give {place} alone")
    if not is_file:
        return place, ()
    _check_kind(place)
    header, metadata = read_header(place)
    if is_published(place.parent):
        return place.parent, (place,)
    if described := _described(place, header, metadata):
        return _settings_folder(place, described, text_encoder), (place,)
    first = ", ".join(sorted(header)[:3])
    what = f"{place} holds {len(header)} arrays such as {first[:200]}"
    if parts := ", ".join(_configuration(metadata))[:200]:
        what = f"{what}; its metadata describe {parts}"
    why = "text encoder, tokenizer, levels and what else a model needs are in no such file"
    fix = "fetch the folder of Diffusers of this model and put the file into it, or write both as"
    raise WeightsError(what, why, f"{fix} one: jvdm convert FOLDER NEW --files {place}")


def _configuration(metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """Returns the configuration in the metadata of a file, empty where there is none."""
    try:
        config = json.loads(metadata.get("config", "{}"))
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}


def _described(
    place: Path, header: Mapping[str, Mapping[str, Any]], metadata: Mapping[str, str]
) -> Described | None:
    """Returns what a family says of a file, None if none knows it.

    Raises:
        WeightsError: If one knows it, and not all that it needs is there.
    """
    shapes = {name.removeprefix(_MODEL): tuple(one["shape"]) for name, one in header.items()}
    config = _configuration(metadata)
    known = [family.single for family in family_modules() if hasattr(family, "single")]
    try:
        return next(filter(None, (single(shapes, config) for single in known)), None)
    except WeightsError as error:
        raise WeightsError(f"{place}: {error.what}", error.why, error.fix) from error
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        what = f"the configuration in the metadata of {place} is not as its arrays are"
        raise WeightsError(what, f"{error!r}"[:200], "download the file again") from error


def _settings_folder(place: Path, described: Described, text_encoder: Path | None) -> Path:
    """Returns a folder of Diffusers with what is described, and with links to a text encoder."""
    links = _links((place.parent if text_encoder is None else text_encoder).expanduser(), place)
    tensors = map_stored(place)
    lost = [name for names in described.others.values() for name in names.values()]
    if lost := [name for name in lost if name not in tensors]:
        why = "latents are standardised by what these arrays say"
        raise WeightsError(f"{place} lacks {', '.join(lost)}", why, "download it again")
    others = {
        part: {name: np.asarray(tensors[theirs], np.float32) for name, theirs in names.items()}
        for part, names in described.others.items()
    }
    said = [described.configs, {name: str(path) for name, path in links.items()}]
    key = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for names in others.values():
        for array in names.values():
            key.update(array.tobytes())
    folder = cache_folder() / "single" / key.hexdigest()[:32]
    if os.path.isdir(folder):
        return folder
    try:
        with appearing(folder) as made:
            for name, config in described.configs.items():
                write_text(made / name, json.dumps(config, indent=1) + "\n")
            for part, names in others.items():
                write_tensors(made / part, names)
            for name, path in links.items():
                (made / name).parent.mkdir(parents=True, exist_ok=True)
                (made / name).symlink_to(path)
    except OSError as error:
        if not os.path.isdir(folder):  # else another process was first
            raise unwritable(folder, error) from error
    return folder


def _links(folder: Path, place: Path) -> dict[str, Path]:
    """Returns the files of a text encoder and its tokenizer, by their place in a folder.

    Raises:
        ConfigError: If they are not in the folder.
    """
    found, lost = {}, []
    for part, patterns in _LINKED.items():
        held = folder / part if os.path.isdir(folder / part) else folder
        files = [path for pattern in patterns for path in sorted(held.glob(pattern))]
        files = [path for path in files if path != place]
        needed = CONFIG if CONFIG in patterns else ""
        if not files or needed and needed not in [path.name for path in files]:
            lost.append(f"{part} ({', '.join(patterns)})")
        found |= {f"{part}/{path.name}": path.resolve() for path in files}
    if lost:
        what = f"{folder} holds no {' and no '.join(lost)}"
        why = f"{place.name} reads prompts by a text encoder that is not in it"
        fix = f"name a folder that has both, of another version for example: {place}:FOLDER"
        raise ConfigError(what, why, fix)
    return found


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
