"""Attention policies: which tokens attend to which."""

from collections.abc import Mapping

from jvdm.attention.adaspa import AdaSpa
from jvdm.attention.attention_tile import AttentionTile
from jvdm.attention.blocks import Blocks, blocks_of
from jvdm.attention.cached_causal import CachedCausal, KVCache
from jvdm.attention.dense import Dense, GatedDense
from jvdm.attention.draft import Draft
from jvdm.attention.frame_causal import FrameCausal
from jvdm.attention.fused_windows import FusedWindows
from jvdm.attention.kept_keys import KeptKeys
from jvdm.attention.level_bank import Bank, LevelBank
from jvdm.attention.next_block import NextBlock
from jvdm.attention.oracle import Oracle
from jvdm.attention.policy import AttentionCall, Policy, TokenGrid
from jvdm.attention.radial import Radial
from jvdm.attention.random_blocks import Random
from jvdm.attention.rettention import Rettention
from jvdm.attention.skip_softmax import SkipSearch, SkipSoftmax
from jvdm.attention.sparse import Sparse
from jvdm.attention.sparse_vdit import PatternSearch, SparseVDiT
from jvdm.attention.spectral_blend import SpectralBlend
from jvdm.attention.svg2 import SVG2
from jvdm.attention.tally import Tally, summary
from jvdm.attention.temporal_swin import TemporalSwin
from jvdm.attention.tile_before import TileBefore
from jvdm.attention.vsa import VSA
from jvdm.attention.window import Window

POLICIES: Mapping[str, Policy] = {
    "dense": Dense(),
    "frame_causal": FrameCausal(),
    "cached_causal": CachedCausal(),
    "level_bank": LevelBank(),
    "draft": Draft(),
    "window": Window(),
    "radial": Radial(),
    "vsa": VSA(),
    "adaspa": AdaSpa(),
    "svg2": SVG2(),
    "rettention": Rettention(),
    "sparse_vdit": SparseVDiT(),
    "attention_tile": AttentionTile(),
    "skip_softmax": SkipSoftmax(),
    "random": Random(),
    "oracle": Oracle(),
    "fused_windows": FusedWindows(),
    "spectral_blend": SpectralBlend(),
    "temporal_swin": TemporalSwin(),
}
"""What can be chosen by name."""

__all__ = [
    "POLICIES",
    "SVG2",
    "VSA",
    "AdaSpa",
    "AttentionCall",
    "AttentionTile",
    "Bank",
    "Blocks",
    "CachedCausal",
    "Dense",
    "Draft",
    "FrameCausal",
    "FusedWindows",
    "GatedDense",
    "KVCache",
    "KeptKeys",
    "LevelBank",
    "NextBlock",
    "Oracle",
    "PatternSearch",
    "Policy",
    "Radial",
    "Random",
    "Rettention",
    "SkipSearch",
    "SkipSoftmax",
    "Sparse",
    "SparseVDiT",
    "SpectralBlend",
    "Tally",
    "TemporalSwin",
    "TileBefore",
    "TokenGrid",
    "Window",
    "blocks_of",
    "summary",
]
