"""Kernels for video transformers; imports jax, numpy and jaxtyping only."""

from pallas_kernels.attention.api import dense_attention

__all__ = ["dense_attention"]
