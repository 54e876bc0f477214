"""FreeLong: slow things from attention to all frames, fast ones from near frames; no training.

jvdm generate "a large red ball rests" --system freelong --num-frames 129

Paper: FreeLong: Training-Free Long Video Generation with SpectralBlend Temporal Attention,
arXiv:2407.19918.
Claim: 128 frames from models of 16, without the blur of attention to all of them.
Ours: in every layer attention to all frames below a quarter of the highest frequency in time and
space, attention to the nine frames around (the shipped model's length) above it, joined by a
Gaussian filter in float32; among all tokens where theirs is among equal places, and in all layers.
Noise is FreeNoise's, as theirs.
Gain: not measured yet.
"""

import dataclasses

from jvdm.attention import SpectralBlend
from jvdm.samplers import WindowShuffle
from jvdm.system import System

WINDOW, STRIDE, NEAR = 8, 4, 9  # latent frames; the shipped model knows 9


def system(base: System) -> System:
    """Returns `base` for clips longer than those of its training."""
    rules = {"noise": WindowShuffle(WINDOW, STRIDE), "policy": SpectralBlend(NEAR)}
    return dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, **rules))
