"""From a weights folder to a system and its parameters on the device."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding

from jvdm.arrays import PyTree
from jvdm.choices import choose
from jvdm.errors import ConfigError, JvdmError, WeightsError
from jvdm.machine import free_device_memory
from jvdm.models.low_rank import Adapted
from jvdm.parallel import place, placed_shapes, shardings
from jvdm.pipeline.texts import Texts, texts_of
from jvdm.pricing import parameter_shapes, stored_shapes
from jvdm.products import device_bytes
from jvdm.recipes import apply_system, load_family, load_system
from jvdm.record import digest
from jvdm.stages import seen, stage
from jvdm.system import System
from jvdm.vae.latent_space import latent_space
from jvdm.values import from_data
from jvdm.weights import Manifest, read_manifest
from jvdm.weights.diffusers import ADAPTED, CONVERTED, Published, Source, read_index
from jvdm.weights.folder import find, is_published
from jvdm.weights.kept import Copy, copy_of, identity
from jvdm.weights.leaves import Index, Leaf
from jvdm.weights.lora import Adapter
from jvdm.weights.single import divided, folder_of, with_files
from pallas_kernels import backend

DTYPES = ("float32", "bfloat16")
TEXT_ENCODER, PLACES = "JVDM_TEXT_ENCODER", ("auto", "keep", "drop")
AnySystem = str | Path | Callable[[System], System] | None


def place_of(path: str | Path | None) -> tuple[Path, tuple[Path, ...]]:
    """Returns the folder that is meant, and the single file that is read of it, if any.

    Args:
        path: Weights folder, name of embedded weights, None for the usual ones, or a single file,
            `FILE` or `FILE:FOLDER` with the folder of its text encoder.

    Raises:
        WeightsError: If there is none, or the rest of what a file needs is not there.
        ConfigError: If a text encoder is named where there is one, or the folder holds none.
    """
    place, text_encoder = divided(path)
    return folder_of(find(place), text_encoder)


def manifest_of(
    folder: Path,
    loras: Sequence[str | Path] = (),
    separate: bool = False,
    files: Sequence[Path] = (),
) -> Manifest:
    """Reads what a weights folder holds, which may be one of Diffusers.

    Args:
        folder: The folder.
        loras: Low-rank changes of its network, `PATH` or `PATH:STRENGTH` each.
        separate: Whether they stay beside its parameters; else they are added to them.
        files: Single files whose arrays take the place of those of a published folder.

    Raises:
        WeightsError: If there is no such folder, or what it says cannot be read or built.
        ConfigError: If it is that of a pipeline that jvdm does not know, or low-rank changes
            cannot be added.
    """
    if separate and not loras:
        why, fix = "there are no low-rank changes to keep so", "add --lora PATH, or leave it out"
        raise ConfigError("--lora-separate was given", why, fix)
    if is_published(folder):
        index = read_index(folder)
        manifest = load_family(str(index.get("_class_name"))).manifest(folder, index)
        manifest = with_files(manifest, files) if files else manifest
        adapters = tuple(Adapter.parsed(text) for text in loras)
        return dataclasses.replace(manifest, adapters=adapters, separate=separate)
    manifest = read_manifest(folder)
    if loras:
        what = f"--lora was given with weights of {manifest.family}"
        why = "low-rank changes are of published networks"
        raise ConfigError(what, why, "give --weights a folder of Diffusers")
    return manifest


def system_of(manifest: Manifest) -> System:
    """Builds the system that a manifest describes.

    Raises:
        WeightsError: If a network is missing, or this jvdm cannot build one.
    """
    try:
        seeing = ("vision",) * ("vision" in manifest.components)
        networks = {name: manifest.component(name) for name in ("text", *seeing, "model", "vae")}
        rules = {name: from_data(rule) for name, rule in manifest.rules.items()}
        system = System(**networks, **rules)
        sampling: Any = system.sampling
        sampling.matrix(sampling.levels(), 2)  # what cannot make one is no rule
        parameter_shapes(system)
        return system
    except JvdmError:
        raise
    except Exception as error:  # whatever a manifest that was edited may hold
        what = f"the manifest of {manifest.family[:80]!r} describes what cannot be built"
        why = f"{type(error).__name__}: {str(error)[:200]}"
        raise WeightsError(what, why, "export or copy the weights folder again") from error


def composed(manifest: Manifest, system: AnySystem, sampling: Mapping[str, Any]) -> System:
    """Returns the system that a run is of.

    Args:
        manifest: Of the weights.
        system: A published method on top of it, by name, file or function; None for none.
        sampling: Rules and numbers by name (`jvdm.choices`).

    Raises:
        WeightsError: If this jvdm cannot build that of the weights.
        ConfigError: If there is no such system or rule.
    """
    base = system_of(manifest)
    if system is not None and not isinstance(system, str | Path):
        base = apply_system(system, base, getattr(system, "__name__", "that was given"))
    elif system is not None:
        base = load_system(str(system), base)
    return choose(base, sampling)


def digests(folder: Path, manifest: Manifest) -> dict[str, str]:
    """Returns the sha256 of every file of weights; of other files than the folder's by path."""
    more = {}
    if isinstance(manifest, Published):
        more = {str(adapter.path): digest(adapter.file) for adapter in manifest.adapters}
        more |= {str(file): digest(file) for file in manifest.single}
    return identity(folder) | more


def chosen_dtype(dtype: str | None) -> str:
    """Returns the number type of the computation.

    Args:
        dtype: "float32" or "bfloat16"; None is float32 on a CPU, where it is faster
            (0.30 s against 0.75 s for a step on two cores), else bfloat16.

    Raises:
        ConfigError: If it is another one.
    """
    dtype = dtype or ("float32" if backend() == "cpu" else "bfloat16")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}", f"known are {', '.join(DTYPES)}", "leave it out")
    return dtype


def load_parameters(
    folder: Path,
    manifest: Manifest,
    system: System,
    mesh: Mesh | None = None,
    *,
    keeps_text: bool = True,
) -> PyTree:
    """Reads the parameters of a system, exactly those that its networks have.

    Args:
        folder: The weights folder.
        manifest: What it holds.
        system: Whose parameters are read.
        mesh: Devices that get what `jvdm.parallel` says; None is the first device alone.
        keeps_text: Whether those of the text encoder are among them; its files are checked anyway.

    Raises:
        WeightsError: If a file is missing or broken, or a shape is not that of the system.
    """
    expected = stored_shapes(system)
    if not keeps_text:
        manifest.parameters(folder, "text", expected.pop("text"))
    params = _loaded(folder, manifest, system, mesh, expected)
    if isinstance(manifest, Published) and manifest.separate:
        params[ADAPTED] = _adapted(params[ADAPTED], manifest, expected[ADAPTED])
    params["vae"] = latent_space(params["vae"], manifest)
    return params if mesh is None else place(params, mesh)


def keeps_text(system: System, mesh: Mesh | None) -> bool:
    """Returns whether the text encoder stays on the device while videos are made.

    `$JVDM_TEXT_ENCODER` says "keep", "drop" or "auto": it stays where the other networks leave
    twice its size, so that as much again is free for denoising.

    Args:
        system: Whose parameters are loaded.
        mesh: Devices that share them.

    Raises:
        ConfigError: If it says something else.
    """
    how = os.environ.get(TEXT_ENCODER) or "auto"
    if how not in PLACES:
        what = f"{TEXT_ENCODER} is {how!r:.80}"
        raise ConfigError(what, "it says where the text encoder is", f"use {' or '.join(PLACES)}")
    free = free_device_memory(jax.local_devices()[0] if mesh is None else mesh.local_devices[0])
    if how != "auto" or free is None:
        return how != "drop"
    held = _held_shapes(system)
    held = held if mesh is None else {n: placed_shapes(tree, mesh) for n, tree in held.items()}
    sizes = {name: device_bytes(tree) for name, tree in held.items()}
    return sum(sizes.values()) + sizes["text"] <= free


def texts(
    folder: Path,
    manifest: Manifest,
    system: System,
    mesh: Mesh | None,
    params: PyTree,
    identity: Mapping[str, str],
) -> Texts:
    """Returns the text encoder of a loaded system.

    Args:
        folder: The weights folder.
        manifest: What it holds.
        system: Its networks.
        mesh: Devices that share the work.
        params: Its parameters; without those of the encoder they are loaded for each use.
        identity: sha256 of the files of the folder.
    """

    def fetch() -> PyTree:
        shapes = {"text": stored_shapes(system)["text"]}
        loaded = _loaded(folder, manifest, system, mesh, shapes)
        return (loaded if mesh is None else place(loaded, mesh))["text"]

    places = (f"{CONVERTED}/text.", manifest.file_of("text"))
    if isinstance(manifest, Published):
        source = manifest.sources["text"]
        assert isinstance(source, Source)
        places = (f"{CONVERTED}/text.", f"{source.folder}/")
    files = {name: content for name, content in identity.items() if name.startswith(places)}
    size = device_bytes(_held_shapes(system)["text"])
    return texts_of(params.get("text"), fetch, files, size)


def _loaded(
    folder: Path, manifest: Manifest, system: System, mesh: Mesh | None, expected: Mapping[str, Any]
) -> dict[str, Any]:
    """Reads the parameters of the networks that are expected, in the order of their use."""
    params: dict[str, Any] = {}
    copy = _copy_of(folder, manifest, system, expected)
    with stage("load", total=len(expected), unit="part") as bar:
        for name, shapes in expected.items():
            tree = copy.read(name, shapes) if copy is not None and copy.exists else None
            if tree is None:
                _, tree = manifest.parameters(folder, name, shapes)
            places = None if mesh is None else shardings(tree, mesh)
            params[name] = ready(tree, getattr(system, name), places)
            if said := seen().arrays:
                bar.set_postfix_str(next(reversed(said.values())))
            bar.update()
            if any(leaf.dtype == np.float16 for leaf in jax.tree.leaves(tree)):
                copy = None  # float16 is warned of whenever it is read
        if copy is not None and not copy.exists and jax.process_count() == 1:
            size = copy.write(params)
            bar.set_postfix_str(f"{size / 1e9:.1f} GB kept in {copy.place}" if size else "")
    return params


def _copy_of(
    folder: Path, manifest: Manifest, system: System, expected: Mapping[str, PyTree]
) -> Copy | None:
    """Returns the copy that is kept of published parameters, where it would be faster."""
    if not isinstance(manifest, Published) or (folder / CONVERTED).is_dir():
        return None
    if manifest.single or manifest.adapters and not manifest.separate:
        return None
    held = _held_shapes(system)
    return copy_of(folder, {name: held[name] for name in expected})


def _held_shapes(system: System) -> dict[str, PyTree]:
    """Returns shape and number type of all parameters on devices, by network."""

    def shape(kind: Callable[[tuple, Any], np.dtype], path: tuple, leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, kind(path, leaf.dtype))

    return {
        name: jax.tree_util.tree_map_with_path(
            functools.partial(shape, kind_in(getattr(system, name))), tree
        )
        for name, tree in stored_shapes(system).items()
    }


def _adapted(params: PyTree, manifest: Published, shapes: PyTree) -> Adapted:
    """Returns the parameters of a network with low-rank changes beside them, on the device."""
    found = jax.tree.map(jnp.asarray, manifest.factors(shapes))
    strengths = jnp.array([adapter.strength for adapter in manifest.adapters], jnp.float32)
    low_rank, whole = (tuple(one[part] for one in found) for part in (0, 1))
    return Adapted(params, low_rank, whole, strengths)


def ready(tree: PyTree, network: Any, shardings: PyTree | None = None) -> PyTree:
    """Puts parameters on the devices.

    Kernels are cast to the type that they are used in, once instead of in every
    step; all modules cast them anyway. Gains, biases and tables stay float32, and so do the
    kernels of parts that a network names in `wide`, also within it.

    Args:
        tree: Parameters; of those that lie in files, a process reads what its devices hold.
        network: The network that they are of.
        shardings: Where each of them is; None is the first device.
    """
    kind = kind_in(network)

    def put(path: tuple, leaf: Any, sharding: Sharding | None = None) -> jax.Array:
        return _put(leaf, kind(path, leaf.dtype), sharding)

    trees = (tree,) if shardings is None else (tree, shardings)
    return jax.tree_util.tree_map_with_path(put, *trees)


def kind_in(network: Any) -> Callable[[tuple, Any], np.dtype]:
    """Returns what says, by path and number type in the file, the number type of a parameter."""
    wide = getattr(network, "wide", ())

    def kind(path: tuple, stored: Any) -> np.dtype:
        names = [str(step.key) for step in path]
        is_kernel = names[-1].startswith("kernel") and not set(names).intersection(wide)
        return jnp.dtype(getattr(network, "dtype", stored) if is_kernel else "float32")

    return kind


def _put(leaf: Any, kind: np.dtype, sharding: Sharding | None) -> jax.Array:
    """Puts an array where a sharding says; of one in a file that part alone is read, once."""
    if not isinstance(leaf, Leaf):
        array = jnp.asarray(leaf, kind)
        return array if sharding is None else jax.device_put(array, sharding)
    if sharding is None:
        return jnp.asarray(leaf.read(dtype=kind))
    parts: dict[Any, np.ndarray] = {}

    def read(index: Index | None) -> np.ndarray:
        place = tuple((cut.start, cut.stop) for cut in index or ())
        if place not in parts:
            parts[place] = leaf.read(index, kind)
        return parts[place]

    return jax.make_array_from_callback(leaf.shape, sharding, read)
