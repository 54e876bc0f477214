"""The mesh as a value: which devices work on which part of a batch."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jvdm.arrays import PyTree

DATA = "data"
"""Mesh axis over which batches are split."""


def data_mesh(num_devices: int | None = None) -> Mesh:
    """Returns a mesh with one axis, `data`, over the first `num_devices` devices."""
    devices = jax.devices()[:num_devices]
    return Mesh(np.asarray(devices), (DATA,))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts a copy of every array of `tree` on every device of `mesh`."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def split_batch(tree: PyTree, mesh: Mesh) -> PyTree:
    """Splits the leading axis of every array of `tree` over the `data` axis."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(DATA)))


def constrain_batch(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Says inside `jit` that leading axes are split over `data`; None says nothing."""
    if mesh is None or mesh.size == 1:
        return tree
    sharding = NamedSharding(mesh, PartitionSpec(DATA))
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding), tree)
