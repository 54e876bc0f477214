"""ARLON: a language model foretells codes of what comes, and chunks of frames follow them.

jvdm stream "a large red ball rests" --weights work/arlon/weights --system arlon --duration 10s

Paper: ARLON: Boosting Diffusion Transformers with Autoregressive Models for Long Video Generation,
arXiv:2410.20502.
Claim: better than Open-Sora 1.2 in 8 of 11 measures of VBench, in fewer steps, and long videos
whose chunks follow one plan.
Ours: the network of `configs/arlon.py` (`PlannedDiT`): 16 codes for each latent frame, foretold
from the prompt and the codes of eight frames, enter the first half of the layers by shift, scale
and gate of every token; chunks of four latent frames beside the four before them. Codes of given
frames are read from them. A square of cells has a code in training and in sampling (theirs are
coarser in training), and one autoencoder, language model and network learn together. Other networks
are made in chunks without a plan.
Gain: not measured yet.
"""

import dataclasses

from jvdm.samplers import AutoregressiveMatrix, WindowedMatrix
from jvdm.system import System

CHUNK = 4  # latent frames that are made together; as many finished ones are beside them


def system(base: System) -> System:
    """Returns `base` in chunks of frames; a network that plans follows its plan."""
    matrix = WindowedMatrix(AutoregressiveMatrix(CHUNK), 2 * CHUNK)
    sampling = dataclasses.replace(base.sampling, matrix=matrix)
    return dataclasses.replace(base, sampling=sampling)
