"""LongLive 2: every prompt is a shot of its own, with a second sink and a jump in time before it.

jvdm stream "a large red ball rolls to the left" --system longlive_2 --duration 20s

Paper: LongLive-2.0: An NVFP4 Parallel Infrastructure for Long Video Generation, arXiv:2605.18739.
Claim: films of several shots in real time, 24.8 frames a second with 5B parameters.
Ours: the cache and the cuts: blocks of eight latent frames in four rows, which read the first eight
of the film, the first eight of the shot and the latest eight. Where another prompt is told, all
that follows is eight places later, and the first block that is made is pinned. Theirs is a cut only
where the prompt begins with a marker. Without their training, four bits and parallel decoding.
Gain: with `nano`, which was not trained for four steps, a stream of 501 frames under one prompt has
a seam of 1.41 (wave 1.94), drift 1.18 of 255 (2.22) and motion 1.05 (1.00); cuts were not judged.

jvdm evaluate --weights nano --streams wave longlive_2 --stream-frames 501
Two busy CPU cores, jax 0.10.2; `fvdm` says what the columns are.
"""

import dataclasses

from jvdm.attention import CachedCausal
from jvdm.samplers import AutoregressiveMatrix, CachedMatrix, ShiftedLevels, Unguided
from jvdm.samplers.solvers import UniPC
from jvdm.system import System

BLOCK, STEPS, SHIFT = 8, 4, 5.0  # latent frames, rows, and what the levels are shifted by
CUT = 8  # places in time


def system(base: System) -> System:
    """Returns `base` with two sinks, the second of which is that of the shot."""
    policy = CachedCausal(3 * BLOCK, sink=BLOCK, pinned=BLOCK, block=BLOCK)
    sampling = dataclasses.replace(
        base.sampling,
        levels=ShiftedLevels(STEPS, SHIFT),
        matrix=CachedMatrix(AutoregressiveMatrix(BLOCK), lookback=2 * BLOCK, cut=CUT),
        solver=UniPC(),
        guidance=Unguided(),
        policy=policy,
    )
    return dataclasses.replace(base, sampling=sampling)
