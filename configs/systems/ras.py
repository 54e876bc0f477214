"""RAS: in most rows half of the tokens run the layers, those whose work changes most.

jvdm generate "a large red ball rolls to the left" --system ras

Paper: Region-Adaptive Sampling for Diffusion Transformers, arXiv:2502.10389.
Claim: up to 2.36 times as fast on Stable Diffusion 3, 2.51 on Lumina-Next; equal to users at
1.6 times.
Ours: tokens that do not run reuse what the layers did to them, and are attended to by their last
keys and values; the focus is where that work moved most, and who waits comes sooner, where the
published sign puts a token off (`jvdm.models.regions.Regions`).
Gain: on `tiny_t2v` at 10.5 of 16 rows' work PSNR 53.7 dB to all rows, every second row (10) 46.6,
12 steps 49.6; none on `nano`: at 9 rows' work 47.1, every second row 50.7, 9 steps 52.6. A run of
Wan 1.3B's shape at 720p with .56 of the work is 1.72 times as fast on an H200.

python -m tests.systems.step_caches measure
On `tiny_t2v` (third edition, 128 x 128, four prompts; table in `magcache`) the claim holds: half of
the tokens are nearer to all rows, and to 64 steps, than steps or rows of the same work; a quarter
(7.75 rows) is 40.1 and 39.2, every third row (8) 41.4 and 40.8. All tokens in turn are 46.3 and
44.7: there the focus is worth 7 dB.

python -m tests.systems.step_caches measure nano
Measured on two busy CPU cores: `nano`, 64 x 64, four prompts one by one, 16 steps, two of which are
above level .95 and run all tokens. Work in rows; PSNR in dB to the clips of the same seeds in which
all rows ran, and to those of 64 steps (without a cache 52.1):

                            rows     same     fine
    half of the tokens         9     47.1     45.9
    all in turn                9     46.9     45.5
    impatience .1              9     43.9     43.4
    every 2nd row              9     50.7     47.6
    9 steps                    9     52.6     47.8
    a quarter                5.5     37.4     37.2
    every 3rd row              6     44.2     43.3
    6 steps                    6     47.5     44.6

Regions have `longest=100` in this table; 8 is 9.5 rows, 47.3 and 46.0 dB. That line and the next
are of a script that is not kept.

How many rows of half of the tokens may follow each other (`longest`), one clip each, PSNR to all
rows: `tiny_t2v`, 40 steps: 8 59.5 dB with the work of 27.5 rows, 12 58.3 with 27, 16 59.5 with
26.5, every second row 57.7 with 26; `nano`, 50 steps: 51.3 with 30, 47.4 with 29, 46.8 with 28.5,
54.9 with 27. The system's own is 12, a quarter of 50 rows: the authors' resets are 8 to 10 of 28 or
30 apart.

At four times the tokens, 128 x 128: half of the tokens 32.2 dB, every second row 39.5, 9 steps
39.6. The focus is worth .2 dB over taking all tokens in turn, and old keys beside new ones seem to
cost more than it gains: on `nano` skip rows instead (`--sampling.cache every`). The paper measured
images of thousands of tokens.

jvdm bench model --shape wan-1.3b-720p --policies draft --caches every regions
On one H200 (jax 0.11.2), a network of the sizes of Wan 1.3B with random weights, 75,600 tokens, 50
rows: half of the tokens run in 44 of them, which is .56 of the work, and a row takes 1.150 s on
average, 1.973 s without: 1.72 times as fast. A row of half of the tokens takes 1.033 s, 1.91 times
as fast as one of all; in the middle, at level .5, the prediction has a PSNR of 25.9 dB to that of
all tokens. When `longest` was 8 (42 rows, .58 of the work) the run was 1.66 times as fast and every
second row (.52 of the work) 1.92 times; in the last two rows the worse prediction had 38.7 and 36.5
dB.

jvdm bench systems --size 33 256 256 --clips 4
On one H200 `tiny_t2v` at four times its tokens gains nothing: 16 rows of 2,304 tokens take .134 s,
.124 s without, at 24.5 dB.
"""

import dataclasses

from jvdm.models.regions import Regions
from jvdm.system import System


def system(base: System) -> System:
    """Returns `base` with rows of half of the tokens."""
    return dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, cache=Regions()))
