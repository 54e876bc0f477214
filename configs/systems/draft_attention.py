"""DraftAttention: attention among patch means says which patches attend to which.

jvdm generate "a large red ball rolls to the left" --system draft_attention --density 0.25

Paper: DraftAttention: Fast Video Diffusion via Low-Resolution Attention Guidance,
arXiv:2505.14708.
Claim: up to 1.75 times as fast as a whole, better than other sparse attention; that PSNR to dense
HunyuanVideo is 32.1, 29.2, 24.2 at 40, 20 and 10 % of it is not in its abstract: unverified.
Ours: queries and keys are averaged over patches; the softmax of their products says which patches
the tokens attend to, after a dense quarter of the rows and a dense first layer
(`jvdm.attention.Draft`).
Gain: at density .25 PSNR 32.4 dB to dense on `nano` (random blocks 26.5, the best lists 35.4); a
network of Wan 1.3B's shape at 720p is 2.12 times as fast at density .277 on an H200, a run with a
dense quarter 1.66 times, 3.13 times if every other row reuses what the layers did.

jvdm attention --weights nano --height 128 --width 128 --block 4
Measured on two CPU cores that others shared, in under 2 minutes: the shipped `nano` at four times
the tokens it was trained on (3 x 8 x 8), two prompts, its own steps, the first quarter of the rows
and the first of three layers dense for every policy. PSNR in dB and SSIM to dense attention at
equal seeds, then recall with dense calls counted, estimated from 16 queries a call:

    density       0.5               0.25              0.1
    draft         40.9 .991 .95     32.4 .954 .86     26.3 .868 .73
    window        28.1 .891 .72     17.9 .548 .66     17.9 .493 .56
    random        32.6 .956 .75     26.5 .885 .63     22.9 .765 .56
    oracle        41.9 .993 .96     35.4 .973 .86     28.2 .902 .74

Recall of the two sparse layers: draft .93 .92, .79 .78, .60 .58; oracle .93 .93, .80 .79, .60 .60;
random .63 .63, .44 .45, .33 .34. The draft keeps nearly what the best lists of blocks can. It is
no faster here: 192 tokens on a CPU are no case for sparse attention.

jvdm attention, with four prompts
Measured on one H200 (jax 0.11.2): `tiny_t2v` at 256 x 256, four times its tokens, ten layers.
PSNR, SSIM and recall as above:

    density       0.5               0.25              0.1
    draft         24.1 .916 .92     22.6 .892 .80     23.4 .892 .65
    window        20.2 .827 .69     17.6 .796 .56     17.2 .772 .47
    random        28.5 .953 .68     24.9 .914 .52     23.0 .880 .42
    oracle        28.2 .953 .93     24.1 .904 .82     22.5 .871 .67

The draft keeps what the best lists keep, far more than chance; its clips are no nearer to the dense
ones than those of random blocks, nor are the oracle's: at a size that this model was not trained
for, recall does not decide. Denoising took .5 to .8 s, dense .2 s: 9 x 16 x 16 tokens are too few.

jvdm bench model --shape wan-1.3b-720p
Measured on one H200 (jax 0.11.2, bfloat16): a network of Wan 1.3B's shape, random weights with
structured attention, 75,600 tokens. A dense row (full lists of our kernel) takes 1.948 s; one of
the draft at density .277, first layer dense, .919 s: 2.12 times as fast, at recall .69, PSNR 23.1
dB, SSIM .861 to the dense prediction (random blocks: .28, 22.6 dB, .844, in a run before). A run of
50 rows, a quarter of them dense, is 1.66 times as fast, and with `--caches every`, which computes
26 of the rows, 3.13 times; the worse of its last two rows has a PSNR of 28.2 dB, 36.5 without the
draft. Beside cuDNN's dense attention, 2.244 s in a run before, a row of .961 s was 2.34 times as
fast.
"""

import dataclasses

from jvdm.attention import Draft
from jvdm.system import System


def system(base: System) -> System:
    """Returns `base` with a quarter of its attention after the first rows."""
    sampling = dataclasses.replace(base.sampling, policy=Draft(density=0.25))
    return dataclasses.replace(base, sampling=sampling)
