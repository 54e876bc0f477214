"""FVDM: a noise level per frame makes one network a model of clips, pictures and long videos.

jvdm generate "a large red ball rolls to the left" --system fvdm --stream --duration 60s

Paper: Redefining Temporal Modeling in Video Diffusion: The Vectorized Timestep Approach (FVDM),
arXiv:2410.03160.
Claim: clips better than the state of the art of its time, and image to video, interpolation and
long videos from one checkpoint.
Ours: four latent frames are made together, behind four that are finished and shown clean: the last
half of a window is the first half of the next (they take 8 of 16). The shipped model is no Latte
and met frames that are given clean in 30 % of its draws (`Probabilistic` draws the paper's);
finished frames are frozen by selection, where the published loop replaces them by the network's
opinion in every step.
Gain: a stream of 501 frames at 762 frames/s on an H200, drift .33 of 255, motion .29 (true .52).

jvdm evaluate --weights nano --streams wave fvdm ar_diffusion streamdit fifo diffusion_forcing
    --stream-frames 501
Measured on two CPU cores that others shared: the shipped `nano` (64 x 64 pixels, 9 frames), two
prompts, 8 steps, 501 frames; windows of more than 3 latent frames are longer than its training.
Calls are of both branches of guidance, `calls/s` follow from `frames/s` and the frames of a chunk,
of the same clock; `seam` is the largest change between chunks over the median change, `drift` the
difference of means and deviations of colours between the first and the last 9 frames in levels of
255, `motion` the change from frame to frame of the last over that of the first, PSNR that of the
first 9 frames to the clip of the same seed whose frames are made together. The wave of lag 2 stands
for what needs no method:

                         calls/chunk  calls/s  frames/s  seam  borders  drift  motion  PSNR
    clip                           -        -         -  1.26     1.26      -       -     -
    wave                           2      180       360  1.94     1.42   2.22    1.00  26.6
    fvdm                           8       85       170  2.17     1.41   3.03    1.16  25.4
    ar_diffusion                   6      256       171  2.30     1.39   3.26    0.81  25.8
    streamdit                      4      232       464  1.99     1.48   1.75    1.17  26.9
    fifo                           1       62       249  2.02     1.42   3.01    1.08  25.4
    diffusion_forcing              4      128       128  1.98     1.38   3.54    0.75  26.3

`borders` is the median change between chunks over the median change; `clip` has no chunks, it says
what the decoder's own borders do. No method drifts by more than 4 levels. The same with `tiny_t2v`
(128 x 128 pixels, 33 frames), 16 steps, on one H200, jax 0.11.2:

                         calls/chunk  calls/s  frames/s  seam  borders  drift  motion  PSNR
    clip                           -        -         -  1.12     1.03      -       -     -
    wave                           2      329       658  4.00     1.01   1.46    0.68  32.4
    fvdm                          16      762       762  3.25     1.21   0.33    0.29  31.5
    ar_diffusion                   6      466       311  1.59     1.22   1.25    0.20  22.4
    streamdit                      4      466       933  3.42     0.56   4.31    0.91  29.3
    fifo                           1      118       474  2.41     1.10   1.55    0.68  31.9
    diffusion_forcing              4      477       477  1.69     1.22   1.26    0.17  22.5

Two prompts say little: on an H100, whose roundings are others, fifo had a motion of .34 and fvdm
.32; with its blocks in one fused call, whose windows disagree, fifo had .82 and a seam of 6.60.

Things slow down in the world that the model knows: what slides has friction, and a wall takes a
fifth of the speed. True films of the two prompts have a `motion` of .87 (ball) and .57 (box) at
frames 64 to 97, and of .46 and .57 at the end (`python -m tests.systems.world_motion`), .52
together. Of that fvdm keeps half, and the causal methods, on a network that was trained with full
attention, a third. The network itself is slow:
behind four latents of true films it makes the next four with .96 .95 .96 .89 of their change, and
eight latents later in the films with .94 .85 .95 .79 (`python -m tests.systems.continued_motion`,
two CPU cores, six films, 8 steps, no guidance). A guidance of 4, 24 steps, and a first given latent
that is made a picture again, as in training, change these means by .05 at most. The next chunk goes
on from what is slower, and in the world nothing at rest starts by itself, so errors towards rest
add up. Windows of 9 latents, the length of training, lose less behind a film (6 given, 3 made: 1.03
.95 .95, later 1.05 .95 .90), but a stream of them is not surely better: over 97 frames, 8 steps,
two seeds, .29 and .69 (ball), .45 and .61 (box) instead of .42, .83, .19 and .48. None of these
settings mends it. Training does: the same network after 5,000 steps with causal attention, on rows
of streams more often than before, has .66 with fvdm, .62 with ar_diffusion and diffusion_forcing
(`configs/tiny_t2v_causal.py`). The median change that seams are told in falls with the motion.
"""

import dataclasses

from jvdm.samplers import AutoregressiveMatrix, WindowedMatrix
from jvdm.system import System

HALF = 4  # latent frames of half a window


def system(base: System) -> System:
    """Returns `base` half a window at a time."""
    matrix = WindowedMatrix(AutoregressiveMatrix(HALF), 2 * HALF)
    return dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, matrix=matrix))
