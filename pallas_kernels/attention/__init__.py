"""Attention kernels and their dispatch."""

from pallas_kernels.attention.api import (
    Choice,
    block_mass,
    block_sparse_attention,
    dense_attention,
    explain,
    refusal,
)
from pallas_kernels.attention.cached import cached_attention, merge, prepared
from pallas_kernels.attention.kernel import KernelUnavailable
from pallas_kernels.attention.past import Past, Prepared
from pallas_kernels.attention.skipping import left_out, skipped_blocks

__all__ = [
    "Choice",
    "KernelUnavailable",
    "Past",
    "Prepared",
    "block_mass",
    "block_sparse_attention",
    "cached_attention",
    "dense_attention",
    "explain",
    "left_out",
    "merge",
    "prepared",
    "refusal",
    "skipped_blocks",
]
