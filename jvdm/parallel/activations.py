"""Where activations lie: networks name the axes, a mesh that is in use says what that means.

Without a mesh nothing is said, and programs are what they were.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jvdm.arrays import Array, PyTree
from jvdm.parallel.mesh import BATCH, ROWS, TOKENS, TRAINING, parts, present

Axis = Literal["batch", "tokens", "heads", "frames", "lines", "matrices"]
"""Axes of activations that may be split: videos of all branches of guidance, tokens of a video,
heads or other features, and where a video is no tokens its frames and the lines of a frame;
matrices of an optimizer."""
_MEANS: dict[Axis, tuple[str, ...]] = {
    "batch": ROWS,
    "tokens": TOKENS,
    "heads": ("tensor",),
    "frames": ("ring",),
    "lines": ("sequence",),
    "matrices": TRAINING,
}

_USED: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)


@contextlib.contextmanager
def using(mesh: Mesh | None) -> Iterator[None]:
    """Makes networks that are traced inside split their activations over `mesh`.

    Enter it inside the function that is jitted, or around its lowering. JAX is told too, so that
    programs that are traced for different meshes are never taken for each other.
    """
    if mesh is None or mesh.size == 1:
        yield
        return
    token = _USED.set(mesh)
    try:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            yield
    finally:
        _USED.reset(token)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Makes networks that are traced inside what one device does, as in the body of `shard_map`."""
    token = _USED.set(None)
    try:
        yield
    finally:
        _USED.reset(token)


def used() -> Mesh | None:
    """Returns the mesh that is in use, if there is one of several devices."""
    return _USED.get()


def token_parts() -> int:
    """Returns over how many devices the tokens of a video are split."""
    return parts(used(), TOKENS)


def constrain(x: Array, *axes: Axis | None) -> Array:
    """Says how an activation is split, where a mesh is in use.

    Args:
        x: The activation.
        axes: What its first axes are; None, and all that are not named, are on every device.
            Where an axis does not divide, XLA pads it; videos that branches of guidance do not
            divide are on all of these.
    """
    mesh = used()
    if mesh is None:
        return x
    means = [_MEANS[axis] if axis else () for axis in axes]
    if axes[0] == "batch" and x.shape[0] % parts(mesh, ROWS):
        means[0] = BATCH
    spec = PartitionSpec(*(present(mesh, names) for names in means))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def beside_branches(
    evaluate: Callable[..., Any], branches: int, given: bool = True
) -> Callable[..., Any]:
    """Returns a function of latents, call and carry whose latents lie with all branches of a video.

    So a prediction is sent once, and what comes of it is computed where it is needed. Without it
    XLA splits latents between branches too, and sends what comes of them back and forth.

    Args:
        evaluate: `(x, call, carry) -> (made, carry)`, of branch-major rows
            `[branches * videos, ...]`.
        branches: How many are evaluated together.
        given: Whether latents and call lie so too, not only what is made.
    """

    def placed(tree: PyTree) -> PyTree:
        mesh = used()
        if mesh is None or parts(mesh, ("branch",)) == 1:
            return tree
        whole = NamedSharding(mesh, PartitionSpec())
        place = NamedSharding(mesh, PartitionSpec(None, present(mesh, BATCH)))

        def one(x: Array) -> Array:
            if x.ndim < 2 or x.shape[0] % branches:
                return x
            if parts(mesh, BATCH) == 1:
                return jax.lax.with_sharding_constraint(x, whole)
            apart = x.reshape(branches, x.shape[0] // branches, *x.shape[1:])
            return jax.lax.with_sharding_constraint(apart, place).reshape(x.shape)

        return jax.tree.map(one, tree)

    def run(x: PyTree, call: PyTree, carry: PyTree) -> tuple[PyTree, PyTree]:
        x, call = placed((x, call)) if given else (x, call)
        made, carry = evaluate(x, call, carry)
        return placed(made), carry

    return run


def constrain_carry(tree: PyTree, mesh: Mesh, rows: int) -> PyTree:
    """Says where lies what a network remembers: split by rows where it has those of a call.

    Args:
        tree: States of layers, `[depth, rows, ...]`, and whatever else; that is everywhere.
        mesh: The devices.
        rows: Rows of a call: videos, of all branches that it evaluates.
    """
    divides, stages = rows % parts(mesh, ROWS) == 0, parts(mesh, ("stage",))

    def one(leaf: Array) -> Array:
        split = divides and leaf.ndim > 1 and leaf.shape[1] == rows
        layers = "stage" if split and stages > 1 and leaf.shape[0] % stages == 0 else None
        spec = PartitionSpec(layers, present(mesh, ROWS)) if split else PartitionSpec()
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(one, tree)
