"""AdaSpa: the best blocks are searched for exactly in three rows, and used in the rows between.

jvdm generate "a large red ball rolls to the left" --system adaspa --density 0.25

Paper: Training-free and Adaptive Sparse Attention for Efficient Long Video Generation,
arXiv:2502.21079.
Claim: HunyuanVideo 1.78 times as fast (its later version says 1.59 to 2.04) with videos as good;
that this is PSNR 29.1 dB at 20 % of the attention after ten of 50 rows is not in its abstract:
unverified.
Ours: the last dense row sums the mass of every block of keys, searches at .4 and .7 of the rows do
so with the sums of the first (theirs is one, at .6); heads of high recall give blocks to those of
low recall (`jvdm.attention.AdaSpa`).
Gain: on `tiny_t2v` PSNR 41.5 dB to dense at .48 of its cost, searches included, and 39.2 at .45
with one search after the first; drafts that cost as much 38.9 and 38.0. What is kept has .014 less
recall than a new search in the worst row, .030 with one. On `nano` more searches are no nearer.

python -m tests.systems.kept_lists schedules tiny_t2v 128 0 16 .25 1
python -m tests.systems.kept_lists schedules
Two CPU cores that others shared, jax 0.10.2: runs of 16 rows at density .25 after three dense rows,
the last of which searches, no layer dense; one clip of `tiny_t2v` at its size, four of `nano` at
four times its tokens, of prompts that are in no other table. How much less recall than after a
search in every row, at most and in the mean of the sparse rows; what is computed, a share of dense
attention, a search being half; PSNR in dB, and that of a draft that costs as much:

    searches after the first  cost   tiny_t2v                  nano
    none                      .422   .073 .032  36.3 (37.8)    .140 .066  29.4 (26.0)
    at .6                     .453   .030 .012  39.2 (38.0)    .061 .025  26.2 (26.5)
    at .4 .7                  .484   .014 .005  41.5 (38.9)    .036 .011  25.9 (27.3)
    at .35 .5 .65 .8          .547   .011 .002  42.9 (41.5)    .022 .006  25.3 (28.5)
    every second row          .609   .007 .001  42.9 (44.0)    .014 .002  25.9 (30.4)
    every row                 .828   0    0     43.1 (57.2)    0    0     25.7 (48.9)

So reuse keeps recall within .02 on `tiny_t2v` with two searches after the first, on `nano` with one
in every second row, which costs a third more and gains nothing: lists of more recall are not nearer
to dense there, and from .48 on a draft is. A search costs what 2 rows of such lists do.

jvdm attention --weights nano --height 128 --width 128 --block 4 --densities .25 --policies adaspa
Measured as `draft_attention` was, with one search after the first: PSNR 34.8 dB, a draft 32.4, the
best lists 35.4, random blocks 26.5; SSIM .966, recall of the two sparse layers .76 .77, half of the
calls dense. The other numbers are of its table; windows, which are constant, recall .50 .49.

jvdm bench model --shape wan-1.3b-720p --policies adaspa --densities .2
One H200 (jax 0.11.2), random weights at the sizes of Wan 1.3B and structured attention, 75,600
tokens: full lists take 1.940 s a row, lists that are kept .800 at a density of .231, 2.43 times as
fast; the first search 3.31 s, the second 1.93, so that a run of 50 rows is 1.80 times as fast.
Recall .59, PSNR 23.8 dB, SSIM .881.
"""

import dataclasses

from jvdm.attention import AdaSpa
from jvdm.system import System


def system(base: System) -> System:
    """Returns `base` with a fifth of its attention after the first rows."""
    policy = AdaSpa(density=0.2, again=(0.4, 0.7))
    return dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, policy=policy))
