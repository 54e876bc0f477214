"""Attention kernels and their dispatch."""

from pallas_kernels.attention.api import dense_attention, refusal

__all__ = ["dense_attention", "refusal"]
