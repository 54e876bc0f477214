"""Attention policies: which tokens attend to which."""

from jvdm.attention.dense import Dense
from jvdm.attention.frame_causal import FrameCausal
from jvdm.attention.policy import AttentionCall, Policy, TokenGrid

__all__ = ["AttentionCall", "Dense", "FrameCausal", "Policy", "TokenGrid"]
