"""Kernels for video transformers; imports jax, numpy and jaxtyping only."""

from pallas_kernels.attention.api import block_sparse_attention, dense_attention
from pallas_kernels.block_mask import BlockMask

__all__ = ["BlockMask", "block_sparse_attention", "dense_attention"]
