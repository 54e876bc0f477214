"""A weights folder: `model.json` says what the safetensors files beside it are.

model.json           Manifest: classes and fields of every component, the rules of sampling,
                     latent statistics, sizes
SHA256SUMS           sha256 of the files when they were exported, as `sha256sum -c` reads it
NAME.safetensors     parameters of the component NAME: "text", "model", "vae", and "reader"
                     for `jvdm evaluate`; `files` names another place
"""

import dataclasses
import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jvdm.errors import WeightsError
from jvdm.files import write_text
from jvdm.reading import made_of, read_json
from jvdm.recipes import nearest
from jvdm.record import digest
from jvdm.values import from_data
from jvdm.weights import safetensors
from jvdm.weights.hub import fetched
from jvdm.weights.migration import from_version_1

MANIFEST = "model.json"
INDEX = "model_index.json"  # of a folder of Diffusers
CHECKSUMS = "SHA256SUMS"
VERSION = 2
EMBEDDED = Path(__file__).parent / "embedded"


@dataclasses.dataclass(frozen=True)
class Defaults:
    """Sizes of a run where the user says nothing.

    Attributes:
        height: Pixels.
        width: Pixels.
        num_frames: Pixel frames.
        fps: Frames per second of the training clips.
    """

    height: int
    width: int
    num_frames: int
    fps: float


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What `model.json` holds: a system as JSON, and what its weights were trained on.

    Attributes:
        family: Name of the model, such as "tiny_t2v".
        components: By name, class and fields of the networks whose parameters are here.
        latent_mean: Mean of the autoencoder's latents, per channel.
        latent_std: Their standard deviation; the denoiser sees `(z - mean) / std`.
        defaults: Sizes of a run.
        trained_frames: Largest number of pixel frames seen in training.
        trained_sizes: Heights and widths in pixels seen in training.
        rules: Process, prediction and sampling, as JSON; empty without a denoiser.
        files: Where a component's parameters are, as `FILE` or `FILE#KEY`, if elsewhere.
        notes: Anything worth keeping: configuration, steps, numbers reached.
        version: Version of this layout.
    """

    family: str
    components: Mapping[str, Mapping[str, Any]]
    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]
    defaults: Defaults
    trained_frames: int
    trained_sizes: tuple[tuple[int, int], ...]
    rules: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    version: int = VERSION

    def component(self, name: str) -> Any:
        """Builds the network called `name`.

        Raises:
            WeightsError: If there is none, or this jvdm cannot build it.
        """
        if name not in self.components:
            what = f"these weights hold {', '.join(self.components) or 'nothing'}"
            raise WeightsError(what, f"a {name} is needed", "give the folder of a whole model")
        return from_data(self.components[name])

    def file_of(self, name: str) -> str:
        """Returns the name of the file with a component's parameters."""
        return self.files.get(name, f"{name}.safetensors").partition("#")[0]

    def parameters(
        self, folder: str | Path, name: str, expected: Mapping[str, Any] | None = None
    ) -> tuple[Path, dict[str, Any]]:
        """Reads the parameters of a component; returns their file too.

        Args:
            folder: The weights folder.
            name: Name of the component.
            expected: The parameters of its network, whose leaves have a `shape`; None if any do.

        Raises:
            WeightsError: If the file is missing or broken, holds no floating numbers, or others
                than expected.
        """
        path = Path(folder) / self.file_of(name)
        key = self.files.get(name, "").partition("#")[2]
        tree = safetensors.load(path)
        if key and key not in tree:
            raise WeightsError(f"{path} holds {', '.join(tree)}", f"{key} is needed")
        tree = tree[key] if key else tree
        if not isinstance(tree, Mapping):
            raise WeightsError(f"{path} holds one array {key}", "parameters are a folder of arrays")
        safetensors.check_floating(path, tree)
        if expected is not None:
            safetensors.match(path, tree, expected)
        return path, dict(tree)


def write_manifest(folder: str | Path, manifest: Manifest) -> Path:
    """Writes `model.json` into `folder` and returns its path."""
    path = Path(folder) / MANIFEST
    write_text(path, json.dumps(dataclasses.asdict(manifest), indent=1) + "\n")
    return path


def read_manifest(folder: str | Path) -> Manifest:
    """Reads and checks `model.json`; an older layout is brought to this one.

    Raises:
        WeightsError: If the folder or file is missing, is not JSON, or lacks a
            field, or is of a version that this jvdm does not know.
    """
    path = Path(folder) / MANIFEST
    if not os.path.isfile(path):
        what = f"{path} does not exist"
        why = f"a weights folder holds {MANIFEST} and the safetensors files it names"
        fix = (
            "give a folder that `jvdm train` exported, or a name of shipped weights: tiny_t2v, nano"
        )
        raise WeightsError(what, why, fix)
    fix = "export or copy the weights folder again"
    content = read_json(path, "manifest", WeightsError, fix)
    try:
        if content["version"] == 1:
            content = from_version_1(content)
        version = content["version"]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise WeightsError(f"{path} is not a manifest", f"{error!r}"[:200], fix) from error
    if version != VERSION:
        why = f"this jvdm reads versions 1 to {VERSION}"
        raise WeightsError(f"{path} has version {str(version)[:20]}", why, "update jvdm")
    manifest = made_of(Manifest, content, path, WeightsError, fix)
    files = [*manifest.components, *(manifest.file_of(name) for name in manifest.files)]
    if any(Path(file).name != file for file in files):
        raise WeightsError(f"{path} names a file elsewhere", "weights lie beside it", fix)
    return manifest


def embedded(name: str = "tiny_t2v") -> Path:
    """Returns the folder of weights that come with the package.

    Raises:
        WeightsError: If this installation has no weights of that name.
    """
    folder = EMBEDDED / name
    if not os.path.isfile(folder / MANIFEST):
        present = sorted(path.parent.name for path in EMBEDDED.glob(f"*/{MANIFEST}"))
        why = f"it has {', '.join(present) or 'none'}"
        fix = nearest(name, present) if present else "reinstall jvdm"
        raise WeightsError(f"this jvdm has no weights called {name!r}", why, fix)
    return folder


def find(place: str | Path | None) -> Path:
    """Returns the folder that is meant: a path, the name of embedded weights, or None for theirs.

    OWNER/NAME, where there is no folder OWNER, is a repository on the Hugging Face hub.

    Raises:
        WeightsError: If this installation has no weights of that name, or the hub does not give
            the repository.
    """
    if place is None:
        return embedded()
    path = Path(place)
    if path.suffix == ".safetensors" and not os.path.exists(path):
        raise WeightsError(f"{path} does not exist", "", "give a weights folder, or a file in one")
    if "/" not in str(place) and not os.path.exists(path):
        return embedded(str(place))
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(place)) and not os.path.exists(path.parent):
        return fetched(str(place), MANIFEST)
    return path


def resolved(place: str | Path) -> Path:
    """Returns `place`, or the embedded weights of that name where nothing lies there."""
    shipped = EMBEDDED / place
    there = os.path.exists(place) or not os.path.isfile(shipped / MANIFEST)
    return Path(place) if there else shipped


def digests(folder: str | Path) -> dict[str, str]:
    """Returns the sha256 of every file of a weights folder, by file name."""
    folder = Path(folder)
    files = [folder / MANIFEST, *sorted(folder.glob("*.safetensors"))]
    if is_published(folder):
        files = [folder / INDEX, *sorted(folder.glob("*/*.json"))]
        files += sorted(folder.glob("*/*.safetensors"))
    return {path.relative_to(folder).as_posix(): digest(path) for path in files}


def is_published(folder: Path) -> bool:
    """Whether this is a folder of Diffusers, and not one of ours."""
    return os.path.isfile(folder / INDEX) and not os.path.isfile(folder / MANIFEST)


def identity(folder: str | Path) -> dict[str, str]:
    """Returns `digests(folder)`; warns if they are not those of the export."""
    found = digests(folder)
    if (Path(folder) / CHECKSUMS).is_file() and (wrong := differences(folder, found)):
        said = f"{folder} is not what was exported: {'; '.join(wrong)}"
        warnings.warn(f"{said}; see jvdm inspect --verify {folder}", stacklevel=3)
    return found


def write_checksums(folder: Path) -> None:
    """Writes the sha256 of the files of a weights folder into `SHA256SUMS`."""
    lines = [f"{content}  {name}\n" for name, content in digests(folder).items()]
    write_text(folder / CHECKSUMS, "".join(lines))


def differences(folder: str | Path, found: Mapping[str, str]) -> list[str]:
    """Says which files, of sha256 `found`, are not those that `SHA256SUMS` names.

    Raises:
        WeightsError: If there is no such list.
    """
    path = Path(folder) / CHECKSUMS
    if not path.is_file():
        fix = "export the weights again, or compare them yourself"
        raise WeightsError(f"{path} does not exist", "an export writes it", fix)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    parts = [re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line) for line in lines]
    wanted = {part[2]: part[1] for part in parts if part}
    said = [] if parts and all(parts) else [f"{CHECKSUMS} is no list of checksums"]
    said += [f"{name} is missing" for name in wanted if name not in found]
    both = wanted.keys() & found.keys()
    said += [f"{name} has changed" for name in sorted(both) if found[name] != wanted[name]]
    return said + [f"{name} is new" for name in found if name not in wanted]


def autoencoder(folder: str | Path) -> tuple[str, tuple[float, ...], tuple[float, ...]]:
    """Returns sha256 and latent statistics of an autoencoder: equal ones make equal latents.

    Raises:
        WeightsError: If the folder has none.
    """
    manifest = read_manifest(folder)
    path = Path(folder) / manifest.file_of("vae")
    if "vae" not in manifest.components or not path.is_file():
        raise WeightsError(f"{folder} holds no autoencoder", f"{path.name} is needed")
    return digest(path), manifest.latent_mean, manifest.latent_std


def located(path: str | Path | None) -> dict[str, str | None]:
    """Returns `path`, and in `sha256` what weights lie there, which is the same anywhere.

    It covers the arrays and the latent statistics of a weights folder, the bytes of a file,
    and is None where neither is.
    """
    place, content = resolved(path or ""), None
    if path and os.path.isfile(place / MANIFEST):
        manifest, files = read_manifest(place), digests(place)
        del files[MANIFEST]
        said = json.dumps([files, manifest.latent_mean, manifest.latent_std])
        content = hashlib.sha256(said.encode()).hexdigest()
    elif os.path.isfile(place):
        content = digest(place)
    return {"path": str(path), "sha256": content}
