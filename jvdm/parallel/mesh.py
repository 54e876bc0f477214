"""The mesh as a value: which devices work on which part of what.

Axes, from the slowest links to the fastest:

* `stage`: layers of a network that sees blocks of a video (`jvdm.models.blockwise`), which hands
  on the tokens of a block (no axis of training).
* `branch`: branches of guidance; a step sends one prediction (no axis of training).
* `data`: videos of a batch; every device has all parameters.
* `fsdp`: videos of a batch too; parameters and optimizer are split (Zhao et al.,
  arXiv:2304.11277), over `ring` and `sequence` as well where these are.
* `ring`: tokens of a video; in attention keys and values go round (Liu et al., arXiv:2310.01889).
* `sequence`: tokens of a video; attention splits heads instead (Jacobs et al., arXiv:2309.14509).
* `tensor`: features of a layer (Shoeybi et al., arXiv:1909.08053).
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jvdm.arrays import PyTree
from jvdm.errors import ConfigError

DATA = "data"
"""Mesh axis over which batches are split and nothing else."""
AXES = ("stage", "branch", DATA, "fsdp", "ring", "sequence", "tensor")
"""All axes, in the order of a mesh."""
TRAINING = AXES[2:]
"""Axes that training knows."""
BATCH = (DATA, "fsdp")
"""Axes over which batches are split."""
ROWS = ("branch", *BATCH)
"""Axes over which the rows of a call are split, which are branch-major: all videos of a branch."""
TOKENS = ("ring", "sequence")
"""Axes over which the tokens of a video are split, the ring outside."""
AUTO = "auto"


def data_mesh(num_devices: int | None = None) -> Mesh:
    """Returns a mesh with one axis, `data`, over the first `num_devices` devices."""
    devices = jax.devices()[:num_devices]
    return Mesh(np.asarray(devices), (DATA,))


def mesh_of(
    description: str | Mesh, devices: Sequence[Any] | None = None, axes: Sequence[str] = AXES
) -> Mesh:
    """Returns the mesh of a description, or a mesh that is one as it is.

    Args:
        description: Sizes of axes, such as "fsdp=4,sequence=2"; one axis may have no size and
            gets the devices that are left. "auto" is "data".
        devices: Those of the mesh; None is all there are.
        axes: Those that apply to what is done.

    Raises:
        ConfigError: If no such axis applies, or the sizes do not make up the devices; valid
            descriptions with these axes are named.

    Example:
        >>> dict(mesh_of("fsdp=1,sequence", jax.devices()[:1]).shape)
        {'fsdp': 1, 'sequence': 1}
    """
    if isinstance(description, Mesh):
        _sizes(description_of(description), axes)
        return description
    chosen = np.asarray(jax.devices() if devices is None else devices).ravel()
    sizes = _sizes(DATA if description == AUTO else description, axes)
    open_axes = [name for name, size in sizes.items() if size is None]
    known = math.prod(size for size in sizes.values() if size is not None)
    if len(open_axes) > 1 or chosen.size % known or (not open_axes and known != chosen.size):
        what = f"the mesh {description!r} is not one of {chosen.size} devices"
        why = "the product of its sizes must be their number, and one axis may have none"
        raise ConfigError(what, why, f"use {' or '.join(_valid(tuple(sizes), chosen.size))}")
    sizes |= {name: chosen.size // known for name in open_axes}
    ordered = {name: sizes[name] or 1 for name in AXES if name in sizes}
    return Mesh(chosen.reshape(tuple(ordered.values())), tuple(ordered))


def _sizes(description: str, axes: Sequence[str]) -> dict[str, int | None]:
    """Reads a description; an axis without a size has None."""
    sizes: dict[str, int | None] = {}
    for part in description.split(","):
        found = re.fullmatch(r"\s*([a-z]+)\s*(?:=\s*([1-9]\d*))?\s*", part)
        if found is None or found[1] not in axes or found[1] in sizes:
            what = f"the mesh {description!r} has the part {part.strip()!r}"
            why = f"parts are AXIS=SIZE, each axis once; axes are {', '.join(axes)}"
            raise ConfigError(what, why, "write it like fsdp=4,sequence=2")
        sizes[found[1]] = int(found[2]) if found[2] else None
    return sizes


def _valid(axes: tuple[str, ...], count: int, most: int = 6) -> list[str]:
    """Returns descriptions of meshes of `count` devices with these axes, the evenest first."""

    def ways(left: int, number: int) -> list[tuple[int, ...]]:
        if number == 1:
            return [(left,)]
        sizes = [size for size in range(1, left + 1) if left % size == 0]
        return [(size, *rest) for size in sizes for rest in ways(left // size, number - 1)]

    found = sorted(ways(count, len(axes)), key=max)
    return [",".join(f"{a}={n}" for a, n in zip(axes, way, strict=True)) for way in found[:most]]


def description_of(mesh: Mesh) -> str:
    """Returns the description of a mesh."""
    return ",".join(f"{name}={size}" for name, size in mesh.shape.items())


def present(mesh: Mesh, axes: Sequence[str]) -> tuple[str, ...]:
    """Returns those of `axes` over which `mesh` splits something."""
    return tuple(name for name in axes if mesh.shape.get(name, 1) > 1)


def parts(mesh: Mesh | None, axes: Sequence[str] = BATCH) -> int:
    """Returns into how many parts `axes` split, those of a batch unless told otherwise."""
    return 1 if mesh is None else math.prod(mesh.shape.get(name, 1) for name in axes)


def check_rows(mesh: Mesh | None, videos: int, branches: int, by_stages: bool = False) -> None:
    """Raises `ConfigError` if a mesh does not split the rows of a call evenly.

    Args:
        mesh: The devices; None is one.
        videos: Videos of the call.
        branches: Branches of guidance that it evaluates, of each video.
        by_stages: Whether layers of the network may lie on different devices.
    """
    if parts(mesh, ("stage",)) > 1 and not by_stages:
        what, why = "the mesh has stages", "the network sees a video at once"
        raise ConfigError(what, why, "use --system dualparal, or split in another way")
    devices, size = parts(mesh), parts(mesh, ("branch",))
    if videos % devices:
        what, why = f"{videos} videos for {devices} devices", "a mesh splits the videos evenly"
        raise ConfigError(what, why, f"make a multiple of {devices}, or use no mesh")
    if branches % size == 0:
        return
    what = f"branch={size} where a call of the network evaluates {branches} of guidance"
    fix = f"use branch={branches}"
    if branches == 1:
        fix = "leave branch out, or use guidance with a scale above 1 and branches in one batch"
    raise ConfigError(what, "every device of that axis has as many", fix)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns where arrays lie whose leading axis counts the videos of a batch."""
    return NamedSharding(mesh, PartitionSpec(present(mesh, BATCH)))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts a copy of every array of `tree` on every device of `mesh`.

    Of several processes each gives its own copy, and none waits for another one: a thread may call
    it while another thread has the devices of all processes at work.
    """
    place = NamedSharding(mesh, PartitionSpec())

    def one(leaf: Any) -> jax.Array:
        return jax.make_array_from_callback(leaf.shape, place, lambda index: leaf[index])

    return jax.device_put(tree, place) if place.is_fully_addressable else jax.tree.map(one, tree)


def split_batch(tree: PyTree, mesh: Mesh) -> PyTree:
    """Splits the leading axis of every array of `tree` over the axes of a batch."""
    return jax.device_put(tree, batch_sharding(mesh))


def constrain_batch(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Says inside `jit` that leading axes are split as batches are; None says nothing."""
    if mesh is None or mesh.size == 1:
        return tree
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding), tree)
