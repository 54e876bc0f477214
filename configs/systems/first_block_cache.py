"""First block cache: the first layer says whether the others run.

jvdm generate "a large red ball rolls to the left" --system first_block_cache

Paper: first block cache of ParaAttention and Diffusers (`FirstBlockCacheConfig`); no paper
of its own, the measure is that of TeaCache, arXiv:2411.19108.
Claim: twice as fast on FLUX.1-dev and HunyuanVideo, as the documentation of Diffusers reports it.
Ours: the first layer runs in every row; what it changes is compared, frame by frame, with what it
changed in the last row that ran all layers (`jvdm.models.step_cache.FirstBlockCache`). Branches of
guidance that are one call decide together; the first rows above level .95 always run.
Gain: on `tiny_t2v` with 9 of 16 rows computed PSNR 41.8 dB to all rows (9 steps 41.6; every
third row, without a rule, 41.4 with 8).

Its table is in `magcache`, which was measured with it.
"""

import dataclasses

from jvdm.models.step_cache import FirstBlockCache
from jvdm.system import System


def system(base: System) -> System:
    """Returns `base` with the cache."""
    cache = FirstBlockCache(threshold=0.2)
    return dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, cache=cache))
