"""SkyReels-V2: blocks of frames a few rows apart, and context that is told a little noise.

jvdm stream "a large red ball rolls to the left" --system skyreels_v2 --duration 20s

Paper: SkyReels-V2: Infinite-length Film Generative Model, arXiv:2504.13074.
Claim: films without an end from a model of clips that was trained with a level for every frame.
Ours: blocks of two latent frames (theirs five), five rows apart (theirs), in a sliding window of
ten (theirs 25), so that a block that is finished stays in sight. Finished frames are told a level
of .02, theirs for long films, which noises them too; ours are scaled and not noised. Attention is
full, as in their models without causal blocks.
Gain: a stream of 501 frames of `nano` on two CPU cores: seam 1.73 (wave 1.94), drift 2.89 of 255
(2.22), motion 1.27 (1.00).

jvdm evaluate --weights nano --streams wave skyreels_v2 diffusion_forcing --stream-frames 501
Measured as `fvdm` was (its table), on two CPU cores that others shared, jax 0.10.2; each chunk is
two latent frames. `tiny_t2v` was not measured:

                         calls/chunk  frames/s  seam  borders  drift  motion  PSNR
    wave                           2       430  1.94     1.42   2.22    1.00  26.6
    skyreels_v2                    5       224  1.73     1.41   2.89    1.27  26.4
    diffusion_forcing              4       207  1.98     1.38   3.54    0.75  26.3
"""

import dataclasses

from jvdm.samplers import LagMatrix, Stabilised, WindowedMatrix
from jvdm.system import System

LAG, BLOCK, WINDOW = 5, 2, 10  # rows, and latent frames


def system(base: System) -> System:
    """Returns `base` as a wave of blocks in a sliding window."""
    rules = {"matrix": WindowedMatrix(LagMatrix(LAG, BLOCK), WINDOW), "context": Stabilised(0.02)}
    return dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, **rules))
