"""Meshes and shardings as values; see `jvdm.parallel.mesh` for the axes."""

from jvdm.parallel.activations import constrain, splits_tokens, using
from jvdm.parallel.attention import attention, read
from jvdm.parallel.mesh import (
    AXES,
    DATA,
    batch_sharding,
    constrain_batch,
    data_mesh,
    mesh_of,
    parts,
    replicate,
    split_batch,
)
from jvdm.parallel.placement import place, shardings, whole

__all__ = [
    "AXES",
    "DATA",
    "attention",
    "batch_sharding",
    "constrain",
    "constrain_batch",
    "data_mesh",
    "mesh_of",
    "parts",
    "place",
    "read",
    "replicate",
    "shardings",
    "split_batch",
    "splits_tokens",
    "using",
    "whole",
]
