"""FVDM: a noise level per frame makes one network a model of clips, pictures and long videos.

jvdm generate "a large red ball rolls to the left" --system fvdm --stream --duration 60s
Four latent frames are made together, behind four that are finished and shown clean: the last half
of a window is the first half of the next (Liu et al., arXiv:2410.03160; they take 8 of 16). The
paper's claim: pictures, interpolation and 128 frames from one checkpoint, and the state of the art
of its time on four sets of clips. What is ours: the shipped model is no Latte and met frames that
are given clean in 30 % of its draws (`Probabilistic` draws the paper's); finished frames are frozen
by selection, where the published loop replaces them by the network's opinion in every step.

jvdm evaluate --weights nano --streams wave fvdm ar_diffusion streamdit fifo diffusion_forcing
    --stream-frames 501
Measured on two CPU cores that others shared: the shipped `nano` (64 x 64 pixels, 9 frames), two
prompts, 8 steps, 501 frames; windows of more than 3 latent frames are longer than its training.
Calls are of both branches of guidance; `seam` is the largest change between chunks over the median
change, `drift` the difference of means and deviations of colours between the first and the last 9
frames in levels of 255, `motion` the change from frame to frame of the last over that of the first,
PSNR that of the first 9 frames to the clip of the same seed whose frames are made together. The
wave of lag 2 stands for what needs no method:

                         calls/chunk  calls/s  frames/s  seam  drift  motion  PSNR
    wave                           2      162       323  1.94   2.22    1.00  26.6
    fvdm                           8      136       271  2.17   3.03    1.16  25.4
    ar_diffusion                   6      241       161  2.30   3.26    0.81  25.8
    streamdit                      4      216       432  1.99   1.75    1.17  26.9
    fifo                           1       70       279  1.88   2.06    0.98  24.5
    diffusion_forcing              4       55        55  1.97   3.45    0.74  26.3

No method drifts by more than 4 levels, and a chunk takes as long at the end as at the start (.8 to
1.1 times). `tiny_t2v` has been measured for `streamdit`, `ar_diffusion` and `fifo` (there), with
--stream-frames 97 --num-prompts 1 --batch-size 1; not yet for this system, nor over 500 frames.
"""

import dataclasses

from jvdm.samplers import AutoregressiveMatrix, WindowedMatrix
from jvdm.system import System

HALF = 4  # latent frames of half a window


def system(base: System) -> System:
    """Returns `base` half a window at a time."""
    matrix = WindowedMatrix(AutoregressiveMatrix(HALF), 2 * HALF)
    return dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, matrix=matrix))
