"""Meshes and shardings as values."""

from jvdm.parallel.mesh import DATA, constrain_batch, data_mesh, replicate, split_batch

__all__ = ["DATA", "constrain_batch", "data_mesh", "replicate", "split_batch"]
