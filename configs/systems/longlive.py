"""LongLive: a cache of the first and the latest frames, told again where the prompt changes.

jvdm stream "a large red ball rolls to the left" --system longlive --duration 20s

Paper: LongLive: Real-time Interactive Long Video Generation, arXiv:2509.22622.
Claim: 20.7 frames a second on one H100, up to 240 s, and prompts that change while it plays.
Ours: blocks of three latent frames, one after the other, that read the first three (the sink) and
the latest six from a cache. Where another prompt is told, keys and values of the latest nine are
made again under it from their latents, the sink keeps its own (`global_sink`). Strictly causal,
where theirs lets frames that are made again see each other; without their training.
Gain: with `nano`, which was not trained causally, a stream of 501 frames has a seam of 2.33 (wave
1.94), drift 2.89 of 255 (2.22) and motion 1.89 (1.00); no weights with causal attention ship.

jvdm evaluate --weights nano --streams wave longlive --stream-frames 501
Two busy CPU cores, jax 0.10.2, each system in a run of its own; `fvdm` says what the columns are.
"""

import dataclasses

from jvdm.attention import CachedCausal
from jvdm.samplers import AutoregressiveMatrix, CachedMatrix
from jvdm.system import System

BLOCK, SINK, RECENT = 3, 3, 6  # latent frames


def system(base: System) -> System:
    """Returns `base` with a sink, a ring of the latest frames, and a cache that is rewritten."""
    policy = CachedCausal(SINK + RECENT, sink=SINK, block=BLOCK)
    held = {"lookback": SINK + RECENT, "rewrite": SINK + RECENT}
    rules = {"policy": policy, "matrix": CachedMatrix(AutoregressiveMatrix(BLOCK), **held)}
    return dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, **rules))
