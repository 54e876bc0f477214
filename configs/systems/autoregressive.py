"""Autoregression: a latent frame is finished before the next one begins, and never looks ahead.

jvdm generate "a large red ball rolls to the left" --system autoregressive

Paper: From Slow Bidirectional to Fast Autoregressive Video Diffusion Models (CausVid),
arXiv:2412.07772.
Claim: a causal model, distilled from one with full attention and 50 steps into 4, streams 9.4
frames a second on one GPU.
Ours: a lag of as many rows as there are steps, and frame-causal attention, without distillation.
The shipped model was trained with full attention, so its frames are worse this way; a model of
one's own is trained with `FrameCausal` as the policy of its network.
Gain: with `nano`, which was not trained causally, a stream of 501 frames has a seam of 3.34 (wave
1.94), drift 4.12 of 255 (2.22) and motion .34 (1.00).

jvdm evaluate --weights nano --streams wave autoregressive --stream-frames 501
Two busy CPU cores, jax 0.10.2, each system in a run of its own; `fvdm` says what the columns are.
"""

import dataclasses

from jvdm.attention import FrameCausal
from jvdm.samplers import AutoregressiveMatrix
from jvdm.system import System


def system(base: System) -> System:
    """Returns `base` one frame at a time."""
    sampling = dataclasses.replace(
        base.sampling, matrix=AutoregressiveMatrix(), policy=FrameCausal()
    )
    return dataclasses.replace(base, sampling=sampling)
