"""TeaCache: rows reuse what the layers did until what modulates the tokens has changed enough.

jvdm generate "a large red ball rolls to the left" --system teacache

Paper: Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model, arXiv:2411.19108.
Claim: up to 4.41 times as fast on Open-Sora-Plan with hardly a loss; 1.5 to 2.2 times on Wan 2.1
and HunyuanVideo is not in its abstract: unverified.
Ours: relative changes of the tokens, as the first layer modulates them, add up frame by frame from
row to row, over the frames that move; at the threshold all layers run
(`jvdm.models.step_cache.TeaCache`). The polynomial of the paper is the identity, which needs no
fitting and serves any weights; `jvdm attention --weights FOLDER --search step_cache` fits one, for
these weights and as many steps. Published ones are given as `--sampling.cache.coefficients` with
`--sampling.cache.signal time`; below zero, where they were not fitted, they count as zero.
Gain: on `tiny_t2v` with 8 of 16 rows computed PSNR 38.3 dB to all rows, with a fitted polynomial
40.2, by the levels alone (`--sampling.cache.signal time`, .1) 41.3 (8 steps 39.1; every third row,
without a rule, 41.4).

Its table is in `magcache`, which was measured with it. The polynomial of `tiny_t2v` at 16 steps,
for `--sampling.cache.fitted 0.2943`, is -649.8, 412.6, -88.45, 7.676, -.1192 (fitted to two prompts
with other seeds, two CPU cores that others shared, jax 0.10.2). PSNR in dB by rows that computed,
of thresholds from .13 to 1; that of `nano`, likewise, gains nothing: its tokens move as much in
every row, while the layers move thrice as much at the end:

                        rows    10    9     8     7     6     5
    tiny_t2v, identity          -     40.8  38.3  37.1  -     -
    tiny_t2v, fitted            43.3  -     40.2  -     -     -
    nano, identity              52.7  50.7  48.8  47.1  44.2  42.1
    nano, fitted                52.7  50.3  48.2  46.9  42.9  40.9
"""

import dataclasses

from jvdm.models.step_cache import TeaCache
from jvdm.system import System


def system(base: System) -> System:
    """Returns `base` with the cache."""
    cache = TeaCache(threshold=0.3)
    return dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, cache=cache))
