"""Radial attention: the farther a frame, the nearer the place in it that is attended to.

jvdm generate "a large red ball rolls to the left" --system radial_attention --density 0.25

Paper: Radial Attention: O(n log n) Sparse Attention with Energy Decay for Long Video Generation,
arXiv:2506.19852.
Claim: up to 1.9 times as fast at the usual length, and up to 3.7 times, after a little tuning, at
four times the length.
Ours: discs of patches that halve with each doubling of the distance in time, the largest that the
density allows, after a dense quarter of the rows and a dense first layer (`jvdm.attention.Radial`).
The lists are constants: nothing is computed to choose them.
Gain: none without training on a short clip: at density .25 PSNR 17.8 dB to dense on `nano`, random
blocks 26.5; what it is for, many frames, was not measured.

jvdm attention --weights nano --height 128 --width 128 --block 4 --policies radial random
Measured as `draft_attention` was, on two busy CPU cores. PSNR in dB, SSIM and recall:

    density       0.5               0.25              0.1
    radial        30.4 .928 .78     17.8 .522 .61     20.8 .620 .52
    random        32.6 .956 .75     26.5 .885 .63     22.9 .765 .56

Its clip has three latent frames, so that there are no far ones to save on; as with windows, what a
patch does not see it never sees, while random blocks change from row to row.
"""

import dataclasses

from jvdm.attention import Radial
from jvdm.system import System


def system(base: System) -> System:
    """Returns `base` with a quarter of its attention after the first rows."""
    return dataclasses.replace(
        base, sampling=dataclasses.replace(base.sampling, policy=Radial(density=0.25))
    )
