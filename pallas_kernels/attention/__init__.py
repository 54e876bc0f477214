"""Attention kernels and their dispatch."""

from pallas_kernels.attention.api import attention, refusal

__all__ = ["attention", "refusal"]
