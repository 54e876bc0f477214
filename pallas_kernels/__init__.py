"""Kernels for video transformers; imports jax, numpy and jaxtyping only."""

from pallas_kernels.attention import (
    block_mass,
    block_sparse_attention,
    dense_attention,
    explain,
    merge,
)
from pallas_kernels.block_mask import BlockMask

__all__ = [
    "BlockMask",
    "block_mass",
    "block_sparse_attention",
    "dense_attention",
    "explain",
    "merge",
]
