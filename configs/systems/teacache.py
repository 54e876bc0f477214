"""TeaCache: rows reuse what the layers did until what modulates the tokens has changed enough.

jvdm generate "a large red ball rolls to the left" --system teacache

Paper: Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model, arXiv:2411.19108.
Claim: up to 4.41 times as fast on Open-Sora-Plan with hardly a loss; 1.5 to 2.2 times on Wan 2.1
and HunyuanVideo is not in its abstract: unverified.
Ours: relative changes of the tokens, as the first layer modulates them, add up frame by frame from
row to row, over the frames that move; at the threshold all layers run
(`jvdm.models.step_cache.TeaCache`). The polynomial of the paper is the identity, which needs no
fitting; published ones are given as `--sampling.cache.coefficients` with
`--sampling.cache.signal time`, and below zero, where they were not fitted, they count as zero.
Gain: on `tiny_t2v` with 8 of 16 rows computed PSNR 38.3 dB to all rows, by the levels alone
(`--sampling.cache.signal time`, .1) 41.3 (8 steps 39.1; every third row, without a rule, 41.4).

Its table is in `magcache`, which was measured with it.
"""

import dataclasses

from jvdm.models.step_cache import TeaCache
from jvdm.system import System


def system(base: System) -> System:
    """Returns `base` with the cache."""
    cache = TeaCache(threshold=0.3)
    return dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, cache=cache))
