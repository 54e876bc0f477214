"""Attention kernels and their dispatch."""

from pallas_kernels.attention.api import (
    Choice,
    block_mass,
    block_sparse_attention,
    dense_attention,
    explain,
    merge,
    refusal,
)

__all__ = [
    "Choice",
    "block_mass",
    "block_sparse_attention",
    "dense_attention",
    "explain",
    "merge",
    "refusal",
]
