"""Re-ttention: very sparse attention keeps the softmax statistics of a full row before it.

jvdm generate "a large red ball rolls to the left" --system rettention --density 0.1

Paper: Re-ttention: Ultra Sparse Visual Generation via Attention Statistical Reshape,
arXiv:2505.22918.
Claim: as few as 3.1 % of the tokens on CogVideoX and the DiTs of PixArt; on an H100 self-attention
takes over 92 % less time and a run over 45 % less. That CogVideoX-2B then has a PSNR of 28.0 dB to
dense is not in its abstract: unverified.
Ours: every fifth row attends in full, and keeps what the keys that are left out say and what share
of the softmax is theirs; the rows between add the one and scale by the other, over any static lists
of patches of all frames (`jvdm.attention.Rettention`). The rest is taken before the projection,
and the share stays 1 at most.
Gain: at density .1 PSNR 34.6 dB to dense on `nano`, the same lists without statistics 21.1.

jvdm attention --weights nano --height 128 --width 128 --block 4 --policies rettention
Measured as `draft_attention` was, on two busy CPU cores, eight steps; PSNR in dB and SSIM to dense
at each density of the rows between. The ablation changes one
field, in a script that is not kept:

    density                 0.5          0.25         0.1
    as it is                33.1 .967    34.0 .970    34.6 .971
    statistics=False        18.4 .612    18.2 .567    21.1 .717
    ramp=0                  31.5 .957    32.9 .964    34.0 .969
    period=2                36.4 .985    36.0 .984    35.6 .982
    period=10               28.1 .911    28.6 .911    28.7 .905

The statistics do the work, and the ramp adds half a decibel to 1.6. That fewer listed blocks are no
worse says that the rest, which is of the last full row, carries the result. Full rows cost: the
achieved density is .69 to .83. A draft at density .25 has 32.4 dB with .63.

On one H200 (jax 0.11.2), random weights at the sizes of Wan 1.3B and structured attention, 75,600
tokens, `jvdm bench model --shape wan-1.3b-720p --policies rettention --densities .1`: a dense row
takes 1.954 s, one of the density .133 .709 s, 2.76 times as fast, a full one that keeps statistics
2.419 s, so that a run of 50 rows gains 1.86; PSNR 20.4 dB, SSIM .761.
"""

import dataclasses

from jvdm.attention import Rettention
from jvdm.system import System


def system(base: System) -> System:
    """Returns `base` with a tenth of its attention in the rows between full ones."""
    sampling = dataclasses.replace(base.sampling, policy=Rettention(density=0.1))
    return dataclasses.replace(base, sampling=sampling)
