"""ART.V: frame after frame by a network of single frames that copies what did not change.

jvdm stream "a large red ball rests" --weights work/art_v/weights --system art_v --duration 10s

Paper: ART.V: Auto-Regressive Text-to-Video Generation with Diffusion Models, arXiv:2311.18834.
Claim: motions between two frames suffice to make videos of any length; trained on four GPUs in two
weeks, a model drifts less by masked diffusion, references that are noised and an anchor.
Ours: the network of `configs/art_v.py` (`NextFrameDiT`): a latent frame at a time, beside the two
before it and the first of the video, a mask that copies the frame before, and finished frames that
are told a little noise, as they had it in training (ours are scaled and not noised). Four frames
share a latent; theirs starts from a network of pictures. A call computes the two finished frames of
its window too, which a cache would spare. Other networks run too, three frames at a time.
Gain: not measured.
"""

import dataclasses

from jvdm.samplers import AutoregressiveMatrix, Stabilised, WindowedMatrix
from jvdm.system import System

SHOWN = 2  # finished latent frames before the one in work
TOLD = 0.05  # noise level that finished frames are told


def system(base: System) -> System:
    """Returns `base` frame by frame; its network must be one of single frames."""
    rules = {
        "matrix": WindowedMatrix(AutoregressiveMatrix(), SHOWN + 1),
        "context": Stabilised(TOLD),
    }
    return dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, **rules))
