"""SDEdit: a video is noised part of the way and denoised with another prompt.

jvdm generate "a large blue box slides to the left" --system sdedit --video clip.mp4

Paper: SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations,
arXiv:2108.01073.
Claim: one number trades faithfulness to what is given for realism, without training.
Ours: the matrix is cut to its last rows, and latents are edited, not pixels: the run starts from
the video at the level of its first row. `--sampling.matrix.strength` is the share of the rows that
is done: near 0 nothing changes, 1 ignores the video.
Gain: not measured.
"""

import dataclasses

from jvdm.samplers import TruncatedMatrix
from jvdm.system import System


def system(base: System) -> System:
    """Returns `base` as an editor of videos."""
    matrix = TruncatedMatrix(base.sampling.matrix, strength=0.6)
    return dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, matrix=matrix))
