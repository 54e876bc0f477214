"""VSA: trainable sparse attention, of means of blocks and of the tokens of the best blocks.

jvdm generate "a large red ball rolls to the left" --system vsa --density 0.25

Paper: VSA: Faster Video Diffusion with Trainable Sparse Attention, arXiv:2505.13389.
Claim: training costs 2.53 times less at equal loss; Wan 1.3B makes a video in 18 s instead of 31.
Ours: attention among means of patches says which patches the tokens attend to, with no dense rows
or layers (`jvdm.attention.VSA`). A network that is made with this policy has a port `gate` in each
layer, zero at first, that adds the attention among means; weights without it are used without.
Gain: without training a draft with no dense part (`draft_attention`); after 400 steps at a quarter
of the blocks the loss of `nano` is .394, .949 before them, full attention's .313. A network of Wan
1.3B's shape at 720p is 3.03 times as fast at density .131 on an H200.

jvdm attention --weights nano --height 128 --width 128 --block 4 --densities .25 --policies vsa
Measured as `draft_attention` was, on two busy CPU cores: PSNR 32.4 dB, SSIM .954 to dense, recall
of the two sparse layers .79 .78, those of the draft, with its dense rows and layer.

.venv/bin/python -m tests.systems.equal_steps vsa 400
The shipped nano model trained on at a rate of 2e-4, with a quarter of its blocks of four tokens in
every layer and row: loss on 256 clips of split `test`, of equal noise and levels, and how far it is
above that of full attention, with the standard error over draws of these, not over seeds (400 steps
of 16 from 1,024 clips, two CPU cores that others shared, jax 0.10.2, 5 minutes):

                          before   after   more than full
    full attention         .3128   .3128
    vsa                    .9494   .3940   .0812 (+-.0004)
    without means          .9494   .3991   .0863 (+-.0005)

Seven eighths of what few blocks cost are won back, and means help, as the paper says; the equal
loss that it reports is not reached after a tenth of its steps, with three layers that see 12 of 48
tokens.

On one H200 (jax 0.11.2), random weights at the sizes of Wan 1.3B and structured attention, 75,600
tokens, `jvdm bench model --shape wan-1.3b-720p --policies vsa --densities .1`: a dense row (full
lists of our kernel) takes 1.949 s, one at a density of .131, a dense first layer counted, .644 s,
3.03 times as fast; recall .49, PSNR 21.6 dB, SSIM .810, without the training that it is made for.
"""

import dataclasses

from jvdm.attention import VSA
from jvdm.system import System


def system(base: System) -> System:
    """Returns `base` with an eighth of its attention."""
    return dataclasses.replace(
        base, sampling=dataclasses.replace(base.sampling, policy=VSA(density=0.125))
    )
