"""MagCache: how much the layers change their tokens at a noise level says when to run them.

jvdm generate "a large red ball rolls to the left" --system magcache

Paper: MagCache: Fast Video Generation with Magnitude-Aware Cache, arXiv:2506.09045.
Claim: 2.10 to 2.68 times as fast on Open-Sora, CogVideoX, Wan 2.1 and HunyuanVideo, nearer to the
full run than other caches.
Ours: the size of the change is kept as a curve over noise levels instead of ratios of steps, so
that it holds for any number of steps and shift (`jvdm.models.step_cache.MagCache`); the curves
here are those of `tiny_t2v` and `nano`. Another model needs its own, which
`jvdm attention --weights FOLDER --num-inference-steps 32 --search step_cache` prints.
Gain: on `tiny_t2v` with 9 of 16 rows computed PSNR 40.8 dB to all rows (9 steps 41.6; every
third row, without a rule, 41.4 with 8).

python -m tests.systems.step_caches measure
Measured on two busy CPU cores (jax 0.10.2): `tiny_t2v`, third edition, 128 x 128, 33 frames, four
prompts, 16 steps of DPM-Solver++(2M). Rows that computed; PSNR in dB to the clips of the same seeds
in which all rows did, and to those of 64 steps (without a cache 45.9):

                       rows     same     fine
    every 3rd row         8     41.4     40.8
    TeaCache, time .1     8     41.3     40.4
    MagCache .12          8     40.0     38.6
    8 steps               8     39.1     36.9
    TeaCache .3           8     38.3     36.7
    MagCache .06          9     40.8     38.6
    first block .2        9     41.8     39.6
    9 steps               9     41.6     38.4
    every 2nd row        10     46.6     43.4
    10 steps             10     44.6     40.1
    half of the tokens 10.5     53.7     46.5
    first block .1       12     48.4     43.5
    12 steps             12     49.6     42.1

All but TeaCache of the tokens are nearer to 64 steps than as many steps. But no rule of rows does
better than computing every second or third row after level .95 (`--sampling.cache every
--sampling.cache.longest 2`), the ablation; with the line through the last two changes
(`--sampling.cache.order 1`) both are further: 40.5 and 35.3. Half of the tokens (`ras`) are the
nearest. With the second edition, whose 8 steps were 29.0 from 16, every rule was far nearer than as
many steps.
"""

import dataclasses

from jvdm.models.step_cache import MagCache
from jvdm.system import System

TINY_T2V = MagCache(
    threshold=0.06,
    levels=(0.205, 0.348, 0.453, 0.597, 0.727, 0.807, 0.876, 0.938, 0.966, 0.9774, 0.9872, 1.0),
    sizes=(2.148, 2.241, 2.289, 2.337, 2.373, 2.397, 2.420, 2.447, 2.444, 2.416, 2.376, 2.338),
    weights="05758cf4101066ef.58a38a531e2171ef",
)
NANO = MagCache(
    threshold=0.06,
    levels=(0.0606, 0.1176, 0.1714, 0.2703, 0.4, 0.6087, 0.8148, 0.9153, 0.9508, 0.9841, 1.0),
    sizes=(0.272, 0.2137, 0.2003, 0.2257, 0.2917, 0.4105, 0.5149, 0.5872, 0.6227, 0.6495, 0.6182),
    weights="aeb826242be71de2",
)


def system(base: System) -> System:
    """Returns `base` with the cache of `tiny_t2v`, or of `nano` if it has as few layers."""
    cache = NANO if base.model.depth == 3 else TINY_T2V
    return dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, cache=cache))
