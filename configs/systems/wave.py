"""Denoising wave: every latent frame runs two rows behind the one before it.

jvdm generate "a large red ball rolls to the left" --system wave
`index[k, f] = clip(k - 2 f, 0, S)`: early frames are finished while later ones are still noise
(AR-Diffusion, arXiv:2503.07418; the closed form is ours). `--sampling.matrix.lag N` changes the
lag: 0 is the synchronous run, the number of steps is autoregression.
"""

import dataclasses

from jvdm.samplers import LagMatrix
from jvdm.system import System


def system(base: System) -> System:
    """Returns `base` whose frames are denoised in a wave."""
    sampling = dataclasses.replace(base.sampling, matrix=LagMatrix(lag=2))
    return dataclasses.replace(base, sampling=sampling)
