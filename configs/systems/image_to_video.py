"""Image to video: the first latent frame is given clean, all others are generated together.

jvdm generate "a large red ball rolls to the left" --system image_to_video --image first.png
A level per frame makes it a matrix (Diffusion Forcing, arXiv:2407.01392): the first column is
frozen at 0 and the network is told so. What is ours: no second model and no mask channel.
"""

import dataclasses

from jvdm.samplers import GivenMatrix
from jvdm.system import System


def system(base: System) -> System:
    """Returns `base` with its first latent frame given."""
    matrix = GivenMatrix(base.sampling.matrix, columns=(0,))
    return dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, matrix=matrix))
