"""DraftAttention: attention among patch means says which patches attend to which.

jvdm generate "a large red ball rolls to the left" --system draft_attention --density 0.25
Queries and keys are averaged over patches; the softmax of their products says which patches the
tokens attend to (Shen et al., arXiv:2505.14708), after a dense quarter of the rows and a dense
first layer. The paper's claim: PSNR 32.1, 29.2, 24.2 to dense HunyuanVideo at 40, 20 and 10 % of
the attention. What is ours: see `jvdm.attention.Draft`.

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
no faster here: 192 tokens on a CPU are no case for sparse attention. `tiny_t2v` at four times its
tokens (`jvdm attention`) has not been measured yet.
"""

import dataclasses

from jvdm.attention import Draft
from jvdm.system import System


def system(base: System) -> System:
    """Returns `base` with a quarter of its attention after the first rows."""
    sampling = dataclasses.replace(base.sampling, policy=Draft(density=0.25))
    return dataclasses.replace(base, sampling=sampling)
