"""Kernels for video transformers; imports jax, numpy and jaxtyping only."""

from pallas_kernels.attention import attention

__all__ = ["attention"]
