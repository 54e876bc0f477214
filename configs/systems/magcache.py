"""MagCache: how much the layers change their tokens at a noise level says when to run them.

jvdm generate "a large red ball rolls to the left" --system magcache

Paper: MagCache: Fast Video Generation with Magnitude-Aware Cache, arXiv:2506.09045.
Claim: 2.10 to 2.68 times as fast on Open-Sora, CogVideoX, Wan 2.1 and HunyuanVideo, nearer to the
full run than other caches.
Ours: the size of the change is kept as a curve over noise levels instead of ratios of steps, so
that it holds for any number of steps and shift (`jvdm.models.step_cache.MagCache`); the curve
here is that of `tiny_t2v`, four prompts, 32 steps
(`python -m tests.systems.step_caches calibrate`). Another model needs its own.
Gain: on `tiny_t2v` with 8 of 16 rows computed PSNR 40.5 dB to all rows (8 steps 29.0; every
third row, without a rule, 43.0).

python -m tests.systems.step_caches measure
Measured on two busy CPU cores: `tiny_t2v`, 128 x 128, 33 frames, four prompts, 16 steps. Rows that
computed; PSNR in dB to the clips of the same seeds in which all rows did, and to those of 64 steps
(without a cache 42.4):

                     rows     same     fine
    every 3rd row       8     43.0     38.0
    MagCache .06        8     40.5     36.3
    TeaCache .3         8     39.1     35.6
    8 steps             8     29.0     28.3
    first block .2      9     41.8     36.9
    9 steps             9     31.4     30.3
    every 2nd row      10     47.0     39.5
    10 steps           10     38.2     35.4
    first block .1     12     48.8     39.7
    12 steps           12     47.4     39.0

All are far nearer than as many steps. But on this model no rule does better than computing every
third row after level .95 (`--sampling.cache every --sampling.cache.longest 2`), the ablation; with
the line through the last two changes (`--sampling.cache.order 1`) every second row is nearer to 64
steps, 41.0, and every third further, 36.1.
"""

import dataclasses

from jvdm.models.step_cache import MagCache
from jvdm.system import System

TINY_T2V = MagCache(
    threshold=0.06,
    levels=(0.205, 0.348, 0.453, 0.597, 0.727, 0.807, 0.876, 0.938, 0.966, 0.9774, 0.9872, 1.0),
    sizes=(2.148, 2.241, 2.289, 2.337, 2.373, 2.397, 2.420, 2.447, 2.444, 2.416, 2.376, 2.338),
    weights="05758cf4101066ef.58a38a531e2171ef.c7e59e0ea392e041.f6c2e4c708e0e309",
)


def system(base: System) -> System:
    """Returns `base` with the cache of `tiny_t2v`."""
    return dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, cache=TINY_T2V))
