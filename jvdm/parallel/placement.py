"""Where parameters lie: rules by the path and the shape of an array, the same for every family.

They serve whatever has the shape and the end of the path of a parameter: gradients, averages and
what an optimizer remembers of each.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jvdm.arrays import PyTree
from jvdm.parallel.mesh import TOKENS, parts, present

# The first product of a pair makes features that devices share, the second one takes them
# (Megatron, arXiv:1909.08053, section 3), so that each pair costs one sum over the devices.
_MAKES = re.compile(r"(^|_|/)(q|k|v|qkv|kv|up|gate|hidden)/kernel(_\d+)?$")
_TAKES = re.compile(r"(^|_|/)(out|down)/kernel$")
# What is added to every row of a batch, or looked up in: split by features, rows would have to
# change places with them, and XLA keeps whole copies ("involuntary full rematerialization").
_ADDED = re.compile(r"(^|/)modulation$")
_LOOKED_UP = re.compile(r"(^|/)embedding$")
SMALL = 1024
"""Numbers of an array, fewer than which are not worth splitting."""


def path_of(keys: Sequence[Any]) -> str:
    """Returns the path of a leaf as text: `layers/self_q/kernel`."""
    return jax.tree_util.keystr(tuple(keys), simple=True, separator="/")


def placement(path: str, shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """Returns how a parameter is split; what does not divide is on every device.

    Args:
        path: Its path, `layers/self_q/kernel`.
        shape: Its shape; layers may be stacked before the last two axes.
        mesh: The devices. `tensor` splits products of attention and feed-forward parts, `fsdp`
            the largest of the last two axes that is left, of any matrix; over the devices that
            share the tokens of a video too where that divides, for their gradients are summed
            anyway (ZeRO-3 beside DeepSpeed-Ulysses, arXiv:2309.14509, section 4.3). Tables that
            are looked up in are split over their entries alone, those of modulation not at all.
            Kernels of convolutions, which have more than three axes, are on every device. Layers
            of a stack lie on `stage`.
    """
    axes: list[str | tuple[str, ...] | None] = [None] * len(shape)
    if len(shape) > 3:
        return PartitionSpec()
    wanted = _tensor_axis(path, len(shape))
    if wanted is not None and present(mesh, ("tensor",)) and _divides(shape, wanted, mesh):
        axes[wanted] = "tensor"
    worth = len(shape) >= 2 and math.prod(shape) >= SMALL and not _ADDED.search(path)
    if worth and present(mesh, ("fsdp",)):
        matrix = range(len(shape) - 2, len(shape) - bool(_LOOKED_UP.search(path)))
        for over in (present(mesh, ("fsdp", *TOKENS)), ("fsdp",)):
            free = [i for i in matrix if axes[i] is None and shape[i] % parts(mesh, over) == 0]
            if free:
                axes[max(free, key=lambda i: shape[i])] = over if len(over) > 1 else "fsdp"
                break
    stages = mesh.shape.get("stage", 1)
    if stages > 1 and re.search(r"(^|/)layers/", path) and shape and shape[0] % stages == 0:
        axes[0] = "stage"
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


def _tensor_axis(path: str, rank: int) -> int | None:
    """Returns the axis of a parameter that `tensor` is to split, None if there is none."""
    if rank not in (2, 3):
        return None
    return rank - 1 if _MAKES.search(path) else rank - 2 if _TAKES.search(path) else None


def sums(module: str, backward: bool) -> bool:
    """Whether devices that share features add up what a layer makes, or backward its gradient."""
    return bool((_MAKES if backward else _TAKES).search(f"{module}/kernel"))


def _divides(shape: Sequence[int], axis: int, mesh: Mesh) -> bool:
    return shape[axis] % mesh.shape["tensor"] == 0


def shardings(tree: PyTree, mesh: Mesh) -> PyTree:
    """Returns the sharding of every array of a tree, or of its shapes."""

    def one(keys: Any, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, placement(path_of(keys), leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(one, tree)


def placed_shapes(tree: PyTree, mesh: Mesh) -> PyTree:
    """Returns parameters, or their shapes, as shapes that are where they belong."""

    def one(leaf: Any, place: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    return jax.tree.map(one, tree, shardings(tree, mesh))


def place(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts parameters where they belong."""
    return jax.device_put(tree, shardings(tree, mesh))


def whole(tree: PyTree, mesh: Mesh) -> tuple[str, ...]:
    """Says which products `tensor` was to split and cannot, for people; empty if there are none.

    Args:
        tree: Parameters or their shapes.
        mesh: The devices.
    """
    found = []
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path = path_of(keys)
        axis = _tensor_axis(path, len(leaf.shape))
        if axis is not None and present(mesh, ("tensor",)) and not _divides(leaf.shape, axis, mesh):
            found.append(f"{path} ({leaf.shape[axis]} features)")
    if not found:
        return ()
    few = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
    return (f"not split over tensor={mesh.shape['tensor']}, but on every device: {few}",)
