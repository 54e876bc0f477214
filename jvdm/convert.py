"""The verb `convert`: published folders in the layout of our networks, and back."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jvdm.errors import ConfigError, WeightsError
from jvdm.files import appearing
from jvdm.pipeline.loading import manifest_of, place_of, system_of
from jvdm.pricing import stored_shapes
from jvdm.stages import measuring, stage, table
from jvdm.weights.diffusers import Published
from jvdm.weights.safetensors import StorageType, flatten, named_dtype, unflatten
from jvdm.weights.single import with_files


@dataclasses.dataclass(frozen=True)
class ConvertOptions:
    """What to convert, and where to."""

    source: Path
    """Published folder of Diffusers, or one that this command made of it, or a single file and
    the folder of its text encoder, as FILE:FOLDER."""
    target: Path
    """Folder to write; there must be none."""
    files: tuple[Path, ...] = ()
    """Single files, of the original code for example, in the place of what `source` has there."""
    to: Literal["jvdm", "diffusers"] = "jvdm"
    """`jvdm` loads faster: arrays lie as the networks have them. `diffusers` is the way back."""
    dtype: Literal["bfloat16", "float32"] | None = None
    """Number type of floating arrays; that of each array in the files if left out."""


def run(options: ConvertOptions) -> dict[str, Any]:
    """Carries out `jvdm convert`.

    Returns:
        `target`, `arrays` of every component that was converted, `bytes` written, `seconds`.

    Raises:
        WeightsError: If the source is not a published folder, or is broken.
        ConfigError: If the target exists or cannot be written.
    """
    source, own = place_of(options.source.expanduser())
    target = options.target.expanduser()
    if os.path.lexists(target):
        raise ConfigError(f"{target} exists", "nothing is written over", "name another folder")
    manifest = manifest_of(source)
    if not isinstance(manifest, Published):
        why = "only published families have another layout"
        raise WeightsError(f"{source} is a folder of jvdm", why, "give a folder of Diffusers")
    manifest = with_files(manifest, (*own, *options.files))
    shapes = stored_shapes(system_of(manifest))
    with measuring(show=True) as stages, _appearing(target) as folder:
        manifest.write_settings(folder, source)
        with stage("convert", total=len(shapes), unit="part") as bar:
            for name, expected in shapes.items():
                _, tree = manifest.parameters(source, name, expected)
                tree = _cast(tree, options.dtype)
                if options.to == "jvdm":
                    manifest.write_converted(folder, name, tree)
                else:
                    manifest.write_component(folder, name, tree)
                bar.update()
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    made = {"target": str(target), "arrays": stages.arrays, "bytes": size}
    return {**made, "seconds": stages.seconds}


def text(result: dict[str, Any]) -> str:
    """Says what was written."""
    lines = [f"{name}: {counts}" for name, counts in result["arrays"].items()]
    lines.append(f"{result['target']}: {result['bytes'] / 1e6:,.1f} MB")
    return "\n".join([*lines, "", table(result["seconds"])])


def _cast(tree: Mapping[str, Any], dtype: StorageType | None) -> Mapping[str, Any]:
    """Returns parameters in a number type; None keeps theirs."""
    if dtype is None:
        return tree
    kind = named_dtype(dtype)
    return unflatten({name: np.asarray(leaf, kind) for name, leaf in flatten(tree).items()})


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """Gives the folder that becomes `target`, and says where none can be made."""
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(appearing(target))
        except OSError as error:
            why = error.strerror or str(error)
            raise ConfigError(f"{target} cannot be written", why, "name another folder") from error
        yield folder
