"""Meshes and shardings as values; see `jvdm.parallel.mesh` for the axes."""

from jvdm.parallel.activations import (
    beside_branches,
    constrain,
    constrain_carry,
    token_parts,
    using,
)
from jvdm.parallel.attention import attention, read
from jvdm.parallel.mesh import (
    AXES,
    DATA,
    ROWS,
    TRAINING,
    batch_sharding,
    check_rows,
    constrain_batch,
    data_mesh,
    mesh_of,
    parts,
    replicate,
    split_batch,
)
from jvdm.parallel.placement import place, placed_shapes, shardings, whole

__all__ = [
    "AXES",
    "DATA",
    "ROWS",
    "TRAINING",
    "attention",
    "batch_sharding",
    "check_rows",
    "beside_branches",
    "constrain",
    "constrain_batch",
    "constrain_carry",
    "data_mesh",
    "mesh_of",
    "parts",
    "place",
    "placed_shapes",
    "read",
    "replicate",
    "shardings",
    "split_batch",
    "token_parts",
    "using",
    "whole",
]
