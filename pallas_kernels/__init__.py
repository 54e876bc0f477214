"""Kernels for video transformers; imports jax, numpy and jaxtyping only."""

from pallas_kernels.attention import (
    KernelUnavailable,
    Past,
    Prepared,
    block_mass,
    block_sparse_attention,
    cached_attention,
    dense_attention,
    explain,
    left_out,
    merge,
    prepared,
    skipped_blocks,
)
from pallas_kernels.attention.planned import backend, traced_for_gpu
from pallas_kernels.attention.windowed import windowed_attention
from pallas_kernels.block_mask import BlockMask, best_blocks
from pallas_kernels.centroids import nearest
from pallas_kernels.convolution import causal_conv
from pallas_kernels.norms import (
    gate_gradients,
    head_norm,
    norm_silu,
    residual_norm,
    serves_head_norm,
    serves_norm_silu,
    serves_residual_norm,
)
from pallas_kernels.prompts import serves_short_attention, short_attention
from pallas_kernels.tile_order import TileOrder

__all__ = [
    "BlockMask",
    "KernelUnavailable",
    "Past",
    "Prepared",
    "TileOrder",
    "backend",
    "best_blocks",
    "block_mass",
    "block_sparse_attention",
    "cached_attention",
    "causal_conv",
    "dense_attention",
    "explain",
    "gate_gradients",
    "head_norm",
    "left_out",
    "merge",
    "nearest",
    "norm_silu",
    "prepared",
    "residual_norm",
    "serves_head_norm",
    "serves_norm_silu",
    "serves_residual_norm",
    "serves_short_attention",
    "short_attention",
    "skipped_blocks",
    "traced_for_gpu",
    "windowed_attention",
]
