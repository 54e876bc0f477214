"""Infinity-RoPE: positions that stay small for ever, and a cache that is flushed; no training.

jvdm stream "a large red ball rolls to the left" --system infinity_rope --duration 20s

Paper: Infinity-RoPE: Action-Controllable Infinite Video Generation Emerges From Autoregressive
Self-Rollout, arXiv:2511.20649.
Claim: a causal model of 5 s clips goes on without end, and a new prompt shows at once.
Ours: blocks of three latent frames that read the first frame (the sink) and the latest three. Keys
are kept without positions and get those of a window that never moves when they are read. Where
another prompt is told, all but the sink and the latest frame is forgotten. The authors' window
holds two latest frames; a ring of a whole block is written at once. Their cut is left out.
Gain: with `nano`, which was not trained causally, a stream of 501 frames has a seam of 2.25 (wave
1.94), drift 3.27 of 255 (2.22) and motion 1.49 (1.00); no weights with causal attention ship.

jvdm evaluate --weights nano --streams wave infinity_rope --stream-frames 501
Two busy CPU cores, jax 0.10.2, each system in a run of its own; `fvdm` says what the columns are.
With a ring of less weight (`CachedCausal.weight` .6, .3, .1; Krea realtime has .3), in one run of
system files beside this one: drift 3.70, 2.46, 1.90, seam 2.37, 2.57, 2.65. A past that is followed
less drifts less, and chunks fit each other less.
"""

import dataclasses

from jvdm.attention import CachedCausal
from jvdm.samplers import AutoregressiveMatrix, CachedMatrix
from jvdm.system import System

BLOCK, SINK, RECENT = 3, 1, 3  # latent frames


def system(base: System) -> System:
    """Returns `base` with a short cache that is read at places that do not move."""
    policy = CachedCausal(SINK + RECENT, sink=SINK, block=BLOCK, rotary="read")
    held = {"lookback": SINK + RECENT, "flush": 1}
    rules = {"policy": policy, "matrix": CachedMatrix(AutoregressiveMatrix(BLOCK), **held)}
    return dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, **rules))
