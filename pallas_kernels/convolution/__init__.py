"""Convolutions and their dispatch."""

from pallas_kernels.convolution.api import causal_conv, refusal
from pallas_kernels.convolution.reference import activated, normalized, valid_conv

__all__ = ["activated", "causal_conv", "normalized", "refusal", "valid_conv"]
