"""MAGI-1: four chunks in work, each a quarter of the way behind the one before; no training.

jvdm stream "a large red ball rolls to the left" --system magi1 --duration 20s

Paper: MAGI-1: Autoregressive Video Generation at Scale, arXiv:2505.13211.
Claim: films of any length at a constant peak cost, with prompts that change from chunk to chunk.
Ours: the rows: chunks of six latent frames (24 frames), 64 steps, 16 rows apart, so that four are
in work, block-causal, and read the finished chunk before them from a cache: each sees from there up
to itself, five, four, three and two chunks, as theirs do. An own row writes a finished chunk, which
theirs do in the call of the next; their level of .9999 there, the square before the shift of their
levels and the guidance by chunk are left out.
Gain: with `nano`, which was not trained causally, a stream of 501 frames has a seam of 2.08 (wave
1.94), drift 3.27 of 255 (2.22) and motion .51 (1.00); no weights with causal attention ship.

jvdm evaluate --weights nano --streams wave magi1 --stream-frames 501
Two busy CPU cores, jax 0.10.2, each system in a run of its own; `fvdm` says what the columns are.
"""

import dataclasses

from jvdm.attention import CachedCausal
from jvdm.samplers import CachedMatrix, LagMatrix, ShiftedLevels
from jvdm.system import System

CHUNK, STEPS, LAG = 6, 64, 16  # latent frames, and rows


def system(base: System) -> System:
    """Returns `base` as a pipeline of four chunks."""
    matrix = CachedMatrix(LagMatrix(LAG, CHUNK), lookback=CHUNK)
    rules = {"levels": ShiftedLevels(STEPS, 3.0), "policy": CachedCausal(CHUNK, block=CHUNK)}
    sampling = dataclasses.replace(base.sampling, matrix=matrix, **rules)
    return dataclasses.replace(base, sampling=sampling)
