"""Attention kernels and their dispatch."""

from pallas_kernels.attention.api import block_sparse_attention, dense_attention, refusal

__all__ = ["block_sparse_attention", "dense_attention", "refusal"]
