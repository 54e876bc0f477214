"""Attention kernels and their dispatch."""

from pallas_kernels.attention.api import (
    Choice,
    block_sparse_attention,
    dense_attention,
    explain,
    merge,
    refusal,
)
from pallas_kernels.attention.xla import block_mass

__all__ = [
    "Choice",
    "block_mass",
    "block_sparse_attention",
    "dense_attention",
    "explain",
    "merge",
    "refusal",
]
