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
from pallas_kernels.attention.kernel import KernelUnavailable

__all__ = [
    "Choice",
    "KernelUnavailable",
    "block_mass",
    "block_sparse_attention",
    "dense_attention",
    "explain",
    "merge",
    "refusal",
]
