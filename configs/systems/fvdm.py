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

                         calls/chunk  frames/s  seam  borders  drift  motion  PSNR
    clip                           -         -  1.26     1.26      -       -     -
    wave                           2       360  1.94     1.42   2.22    1.00  26.6
    fvdm                           8       170  2.17     1.41   3.03    1.16  25.4
    ar_diffusion                   6       171  2.30     1.39   3.26    0.81  25.8
    streamdit                      4       464  1.99     1.48   1.75    1.17  26.9
    fifo                           1       249  2.02     1.42   3.01    1.08  25.4
    diffusion_forcing              4       128  1.98     1.38   3.54    0.75  26.3

`borders` is the median change between chunks over the median change; `clip` has no chunks, it says
what the decoder's own borders do. No method drifts by more than 4 levels. The same with `tiny_t2v`
(128 x 128 pixels, 33 frames), 16 steps, on one H100, jax 0.11.2, autotuning off:

                         calls/chunk  frames/s  seam  borders  drift  motion  PSNR
    clip                           -         -  1.12     1.02      -       -     -
    fvdm                          16        91  3.04     1.23   0.95    0.32  31.6
    diffusion_forcing              4        75  1.73     1.22   1.32    0.18  22.5
    fifo                           1        78  2.25     1.09   1.70    0.34  31.9
    fifo, one fused call           1        89  6.60     1.23   1.60    0.82  26.4

Things slow down in the world that the model knows: what slides has friction, and a wall takes a
fifth of the speed. True films of the two prompts have a `motion` of .87 (ball) and .57 (box) at
frames 64 to 97, and of .46 and .57 at the end (`python -m tests.systems.world_motion`), .52
together. Of that fvdm and fifo keep two thirds, with full attention. The network itself is slow:
behind four latents of true films it makes the next four with .96 .95 .96 .89 of their change, and
eight latents later in the films with .94 .85 .95 .79 (`python -m tests.systems.continued_motion`,
two CPU cores, six films, 8 steps, no guidance). A guidance of 4, 24 steps, and a first given latent
that is made a picture again, as in training, change these means by .05 at most. The next chunk goes
on from what is slower, and in the world nothing at rest starts by itself, so errors towards rest
add up. Windows of 9 latents, the length of training, lose less behind a film (6 given, 3 made: 1.03
.95 .95, later 1.05 .95 .90), but a stream of them is not surely better: over 97 frames, 8 steps,
two seeds, .29 and .69 (ball), .45 and .61 (box) instead of .42, .83, .19 and .48. None of these
settings mends it; clips for training that begin within a film, behind frames that the network made,
have not been tried. The fused call has more because its windows disagree. The median change that
seams are told in falls with the motion.
"""

import dataclasses

from jvdm.samplers import AutoregressiveMatrix, WindowedMatrix
from jvdm.system import System

HALF = 4  # latent frames of half a window


def system(base: System) -> System:
    """Returns `base` half a window at a time."""
    matrix = WindowedMatrix(AutoregressiveMatrix(HALF), 2 * HALF)
    return dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, matrix=matrix))
