"""Sparse-vDiT: every head has a pattern of its own, searched for before any run.

jvdm generate "a large red ball rolls to the left" --system sparse_vdit --density 0.5

Paper: Sparse-vDiT: Unleashing the Power of Sparse Attention to Accelerate Video Diffusion
Transformers, arXiv:2506.03065.
Claim: CogVideoX1.5, HunyuanVideo and Wan 2.1 1.76, 1.85 and 1.58 times as fast, at a PSNR of 24.13,
27.09 and 22.59 dB.
Ours: a search tries no output, a band, a band across frames and columns, each of several sizes, in
every head, and writes a table of their errors and costs, of blocks or of measured time; what each
head does follows from the density (`jvdm.attention.SparseVDiT`). Tables of other weights or sizes
are refused. Without a table all heads have the band.
Gain: none on `nano`: at density .5 PSNR 32.0 dB to dense, its patterns for heads at random 29.0 to
30.7, but random blocks 32.4 and a draft 39.1; a network of Wan 1.3B's shape at 720p is 2.17 times
as fast at density .276 on an H200, with the band in all heads.

jvdm attention --weights nano --height 128 --width 128 --block 4 --search sparse_vdit
jvdm generate PROMPT --weights nano --height 128 --width 128 --system sparse_vdit
    --sampling.policy.table out/policies/patterns.json
python -m tests.systems.pattern_tables
The last was measured on two busy CPU cores: `nano`, four prompts that the search had not seen, the
first quarter of the rows and the first of three layers dense. PSNR in dB and SSIM:

    density                          0.75        0.5         0.35        0.25
    searched                         34.6 .972   32.0 .953   28.4 .892   26.3 .848
    searched with two other prompts  32.3 .962   31.1 .948   28.5 .893   24.8 .804
    patterns of one size, .25        28.8 .931   25.1 .842   24.5 .834   24.5 .834
    its patterns, heads at random    29.9-30.9   29.0-30.7   23.0-26.2   22.1-26.3
    the band in all heads            35.3 .971   29.5 .920   28.5 .891   23.5 .775
    the band across frames           28.4 .909   18.5 .597   20.3 .656   20.5 .655
    columns, evenly spread           27.2 .869   29.6 .912   30.5 .921   24.7 .784
    random blocks                    37.1 .980   32.4 .950   28.2 .912   25.7 .868
    a draft                          47.8 .998   39.1 .989   35.4 .974   30.7 .940

Between 67 and 100 % of the heads have the same pattern in both searches. Six sparse heads are few
to choose among, and errors of single heads do not add up to that of a video: at .35 columns for all
are better than what was searched, against the paper. A draft, which looks at queries and keys, is
far better at every density.

jvdm bench model --shape wan-1.3b-720p --policies sparse_vdit draft --caches every
On one H200 (jax 0.11.2), as `draft_attention` was: a row at a density of .276, the band in all
heads, takes .897 s, full lists 1.948 s: 2.17 times as fast, recall .27, PSNR 21.3 dB, SSIM .799 (a
draft 23.1, .861). A run of 50 rows, a quarter of them dense, is 1.69 times as fast, and 3.16 times
if every other row after level .95 reuses what the layers did.
"""

import dataclasses

from jvdm.attention import SparseVDiT
from jvdm.system import System


def system(base: System) -> System:
    """Returns `base` with half of its attention after the first rows; a table is named beside."""
    return dataclasses.replace(
        base, sampling=dataclasses.replace(base.sampling, policy=SparseVDiT(density=0.5))
    )
