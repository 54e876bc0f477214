"""AdaSpa: the best blocks are searched for exactly in two rows, and used in the rows between.

jvdm generate "a large red ball rolls to the left" --system adaspa --density 0.25

Paper: Training-free and Adaptive Sparse Attention for Efficient Long Video Generation,
arXiv:2502.21079.
Claim: HunyuanVideo 1.78 times as fast (its later version says 1.59 to 2.04) with videos as good;
that this is PSNR 29.1 dB at 20 % of the attention after ten of 50 rows is not in its abstract:
unverified.
Ours: the last dense row sums the mass of every block of keys, a second search at .6 of the rows
does so with the sums of the first; heads of high recall give blocks to those of low recall
(`jvdm.attention.AdaSpa`).
Gain: at density .25 PSNR 34.8 dB to dense on `nano`; a draft 32.4, the best lists 35.4, random
blocks 26.5.

jvdm attention --weights nano --height 128 --width 128 --block 4 --densities .25 --policies adaspa
Measured as `draft_attention` was, on two busy CPU cores: SSIM .966, recall of the two sparse layers
.76 .77, half of the calls dense. The other three numbers are of its table; windows, which are
constant, recall .50 .49. No time was measured on a GPU.

python -m tests.systems.kept_lists
Recall of the sparse rows of 16, no layer dense, four other prompts, same size and density, beside a
run that searches in every row; two CPU cores that others shared, jax 0.10.2, a minute:

    rows since the search      0     1     2     3     4     5     6     7
    kept, from row 2           -  .711  .702  .694  .686  .677  .668  .657
    searched again, row 10  .718  .716  .707  .694  .678  .661
    searched in every row   .708 to .719

So what is kept stays within .02 of a new search for two or three rows of 16, not for the seven that
the second search ends; that one, which has the sums of the first, finds all that a new one does.
"""

import dataclasses

from jvdm.attention import AdaSpa
from jvdm.system import System


def system(base: System) -> System:
    """Returns `base` with a fifth of its attention after the first rows."""
    return dataclasses.replace(
        base, sampling=dataclasses.replace(base.sampling, policy=AdaSpa(density=0.2))
    )
