"""Sparse VideoGen2: clusters of queries attend to the clusters of keys with most attention.

jvdm generate "a large red ball rolls to the left" --system svg2 --density 0.25

Paper: Sparse VideoGen2: Accelerate Video Generation with Sparse Attention via Semantic-Aware
Permutation, arXiv:2505.18875.
Claim: HunyuanVideo up to 2.30 and Wan 2.1 up to 1.89 times as fast, a PSNR of up to 30 and 26 dB.
Ours: k-means of queries and keys of every head on the device, from the centroids of the search
before, which serves a fifth of the rows of a run; every cluster lies in short blocks of its own,
and the top-p is the largest that the density allows (`jvdm.attention.SVG2`; the authors' share of
.9 is `--sampling.policy.mass 0.9`).
Gain: at density .25 PSNR 31.3 dB to dense on `nano`; a draft 32.4, the best lists 35.4, random
blocks 26.5.

jvdm attention --weights nano --height 128 --width 128 --block 4 --policies svg2 draft random
Measured as `draft_attention` was, on two busy CPU cores: PSNR in dB and SSIM to dense, then recall
with dense calls counted:

    density       0.5               0.25              0.1
    svg2          41.1 .990 .96     31.3 .934 .86     27.0 .829 .71
    draft         40.9 .991 .95     32.4 .954 .86     26.3 .868 .73
    random        32.6 .956 .75     26.5 .885 .63     22.9 .765 .56

Here clusters hold four tokens, as blocks do, and know no better than patches. Two rounds in a later
search instead of one had 40.8, 32.5 and 26.5 dB, with the same recall. Ablation at density .25, by
a script that is not kept: recall of the sparse layers is .80 .79 with two rounds of k-means from
the last centroids, as with 50 rounds from tokens; .79 .79 with two from tokens, .80 .79 with one,
.80 .79 with five. PSNR is from 31.1 to 34.0 dB in no order. A quarter of the clusters of queries
and half of those of keys: .72 .69 and 26.3 dB. With a share of .9 the density decided still.

Padding: a cluster leaves half a block empty on average, so that at 75,600 tokens 100 clusters of
queries in blocks of 128 and 500 of keys in blocks of 64 compute 1.3 times the pairs of the density,
by count.

One layer of Wan 1.3B at 720p on one H200 (jax 0.11.2; 75,600 tokens, 12 heads of 128, structured
queries and keys, a density of .2), by a script that is not kept: attention among the blocks takes
15.5 ms, a search 1.62, where two rounds by XLA, which writes all distances and members down, took
7.86: the nearest of 500 centroids .27 (2.04 by XLA), of 100 .10, putting tokens in order .18 each,
their means .24 and .21, the lists .13 (.53). With the mask, and what else a row chooses, that is
12.6 % of attention in a row that searches (57 before) and 2.8 % in one that does not: 5.2 % if a
search serves four. Since then blocks are listed once for each cluster, tokens of all heads are
sorted as one row and added up as they were put in order.

Two heads at this size on two CPU cores, the last of six rows from level .7 to .5, all of which
search: recall of 512 queries .928 with one round as with two, .917 to .924 where means were of
8,192 or 32,768 tokens; what the first row found has .915.

jvdm bench model --shape wan-1.3b-720p --policies svg2 --densities .2
Random weights at the sizes of Wan 1.3B on an H200: a dense row (full lists of our kernel) takes
1.932 s, one of a search for every ten .868 s (.226 with the dense layer), 2.23 times as fast, a run
of 50 rows 1.72 times; the first row, of 50 rounds, 2.9 s. Choosing is 5.0 % of attention, recall
.905, PSNR 24.8 dB, SSIM .903. With a search for every four, on a slower card, 1.956 and .888 s and
6.2 %; with two rounds in every row 1.135 s, 1.71 and 1.39 times as fast, 51 %, 6.1 s for the first
row, 24.8 dB; at a density of .273 1.262 s, 1.55 and 1.44 times, 25.6 dB, a draft at .277 .961 s,
23.1 dB.

python -m tests.systems.kept_clusters nano
Recall of 50 rows, dense ones counted, and PSNR in dB to dense of four clips at density .25, if a
search serves so many rows (two CPU cores, jax 0.10.2): .787 31.0 for one, .786 30.5 for two, .784
30.4 for 4, .782 30.4 for 5, .782 31.3 for 6, .780 29.2 for 8, .776 30.1 for 10, .771 28.8 for 16;
.788 30.2 for one of two rounds. PSNR is in no order from 2 to 10, so that a search serves ten of 50
rows now.
"""

import dataclasses

from jvdm.attention import SVG2
from jvdm.system import System


def system(base: System) -> System:
    """Returns `base` with a quarter of its attention after the first rows."""
    return dataclasses.replace(
        base, sampling=dataclasses.replace(base.sampling, policy=SVG2(density=0.25))
    )
