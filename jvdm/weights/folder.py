"""A weights folder: `model.json` says what the safetensors files beside it are.

model.json           Manifest: family, fields of every component, latent
                     statistics, defaults, vocabulary
vae.safetensors      parameters of the video autoencoder
dit.safetensors      {"dit": denoiser, "text": text encoder}
reader.safetensors   parameters of the attribute reader, for `jvdm evaluate`
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jvdm.errors import WeightsError
from jvdm.files import write_text

MANIFEST = "model.json"
VERSION = 1
EMBEDDED = Path(__file__).parent / "embedded"


@dataclasses.dataclass(frozen=True)
class Defaults:
    """What a run uses where the user says nothing.

    Attributes:
        height: Pixels.
        width: Pixels.
        num_frames: Pixel frames.
        fps: Frames per second of the training clips.
        num_inference_steps: Rows of a synchronous run.
        guidance_scale: Weight of the prompt; 1 is no guidance.
        shift: Shift of the noise levels towards noise.
        solver: Name of the solver (`jvdm.samplers.solver_named`).
    """

    height: int
    width: int
    num_frames: int
    fps: float
    num_inference_steps: int
    guidance_scale: float
    shift: float
    solver: str = "euler"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What `model.json` holds.

    Attributes:
        family: "tiny_t2v" or "nano".
        components: For "vae", "dit", "text" and "reader" the fields of its class.
        latent_mean: Mean of the autoencoder's latents, per channel.
        latent_std: Their standard deviation; the denoiser sees `(z - mean) / std`.
        defaults: Settings of a run.
        vocabulary: Words in the order of their token ids.
        trained_frames: Largest number of pixel frames seen in training.
        trained_sizes: Heights and widths in pixels seen in training.
        notes: Anything worth keeping: configuration, steps, numbers reached.
        version: Version of this layout.
    """

    family: str
    components: Mapping[str, Mapping[str, Any]]
    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]
    defaults: Defaults
    vocabulary: tuple[str, ...]
    trained_frames: int
    trained_sizes: tuple[tuple[int, int], ...]
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    version: int = VERSION


def write_manifest(folder: str | Path, manifest: Manifest) -> Path:
    """Writes `model.json` into `folder` and returns its path."""
    path = Path(folder) / MANIFEST
    write_text(path, json.dumps(dataclasses.asdict(manifest), indent=1) + "\n")
    return path


def read_manifest(folder: str | Path) -> Manifest:
    """Reads and checks `model.json`.

    Raises:
        WeightsError: If the folder or file is missing, is not JSON, or lacks a
            field, or is of a version that this jvdm does not know.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        what = f"{path} does not exist"
        why = f"a weights folder holds {MANIFEST} and the safetensors files it names"
        raise WeightsError(what, why, "give the folder that `jvdm train` exported, or none")
    fix = "export or copy the weights folder again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            why = f"this jvdm reads version {VERSION}"
            raise WeightsError(f"{path} has version {content['version']}", why, "update jvdm")
        content["defaults"] = Defaults(**content["defaults"])
        for name in ("latent_mean", "latent_std", "vocabulary"):
            content[name] = tuple(content[name])
        content["trained_sizes"] = tuple((int(h), int(w)) for h, w in content["trained_sizes"])
        return Manifest(**content)
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} is not a manifest", f"{error!r}", fix) from error


def embedded(name: str = "tiny_t2v") -> Path:
    """Returns the folder of weights that come with the package.

    Raises:
        WeightsError: If this installation has no weights of that name.
    """
    folder = EMBEDDED / name
    if not (folder / MANIFEST).is_file():
        present = sorted(path.parent.name for path in EMBEDDED.glob(f"*/{MANIFEST}"))
        why = f"it has {', '.join(present) or 'none'}"
        raise WeightsError(f"this jvdm has no weights called {name!r}", why, "reinstall jvdm")
    return folder


def fields_of(module: Any) -> dict[str, Any]:
    """Returns the fields of a component as JSON values.

    Types of numbers become their names. A field that holds an object (an
    attention policy, say) is left out when it has its default value.

    Args:
        module: A frozen dataclass, such as a Linen module.

    Raises:
        WeightsError: If a field cannot be written as JSON.
    """
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(module):
        value = getattr(module, field.name)
        if not field.init or field.name in ("parent", "name"):
            continue
        if isinstance(value, type | np.dtype):
            value = np.dtype(value).name
        try:
            json.dumps(value)
        except TypeError as error:
            if value == field.default:
                continue
            what = f"field {field.name} of {type(module).__name__} is {value!r}"
            raise WeightsError(
                what, "it cannot be written as JSON", "use numbers or text"
            ) from error
        fields[field.name] = value
    return fields


def frozen(value: Any) -> Any:
    """Returns JSON lists as tuples, at any depth, so that fields are hashable."""
    return tuple(frozen(entry) for entry in value) if isinstance(value, list) else value


def identity(folder: str | Path) -> dict[str, str]:
    """Returns the sha256 of every file of a weights folder, by file name."""
    files = [Path(folder) / MANIFEST, *sorted(Path(folder).glob("*.safetensors"))]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
