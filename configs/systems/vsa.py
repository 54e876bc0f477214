"""VSA: trainable sparse attention, of means of blocks and of the tokens of the best blocks.

jvdm generate "a large red ball rolls to the left" --system vsa --density 0.25

Paper: VSA: Faster Video Diffusion with Trainable Sparse Attention, arXiv:2505.13389.
Claim: training costs 2.53 times less at equal loss; Wan 1.3B makes a video in 18 s instead of 31.
Ours: attention among means of patches says which patches the tokens attend to, with no dense rows
or layers (`jvdm.attention.VSA`). A network that is made with this policy has a port `gate` in each
layer, zero at first, that adds the attention among means; weights without it are used without.
Gain: without training a draft with no dense part (`draft_attention`); trained it was not measured.

jvdm attention --weights nano --height 128 --width 128 --block 4 --densities .25 --policies vsa
Measured as `draft_attention` was, on two busy CPU cores: PSNR 32.4 dB, SSIM .954 to dense, recall
of the two sparse layers .79 .78, those of the draft, with its dense rows and layer.

On one H200 (jax 0.11.2), random weights at the sizes of Wan 1.3B and structured attention, 75,600
tokens, `jvdm bench model --shape wan-1.3b-720p --policies vsa --densities .1`: a dense row (full
lists of our kernel) takes 1.954 s, one at a density of .131, a dense first layer counted, .685 s,
2.85 times as fast; recall .49, PSNR 21.6 dB, SSIM .810, without the training that it is made for.
"""

import dataclasses

from jvdm.attention import VSA
from jvdm.system import System


def system(base: System) -> System:
    """Returns `base` with an eighth of its attention."""
    return dataclasses.replace(
        base, sampling=dataclasses.replace(base.sampling, policy=VSA(density=0.125))
    )
