"""Video Interface Networks: chunks of a long video made side by side, tied by tokens of all of it.

jvdm generate "a large red ball rests" --weights work/vin/weights --system vin --num-frames 65

Paper: Generating, Fast and Slow: Scalable Parallel Video Generation with Video Interface Networks,
arXiv:2503.17539.
Claim: the smoothest motion with 25 to 40 % fewer operations than full attention over the video, and
backgrounds and subjects that stay the same better than with other methods of chunks.
Ours: the network of `configs/vin.py` (`InterfaceDiT`): tokens that read key frames of the whole
noisy video in every call, among themselves and the prompt, chunks as a batch, and frames that
neighbours share, which are what a chunk knows of the one before and are mixed above level .4
(theirs in 30 of 50 steps). Chunks read the tokens as they read the prompt, and not as a part of
their own sequence, so that layers do not write to them; training mixes shared frames too. Weights
of another network are refused.
Gain: .84 of the operations of full attention over 160 latent frames, but 1.09 over 80; mixed
frames take seams of `configs/vin.py` from 1.80 to 1.52. The tokens gain nothing in 600 steps: loss
.377, without them .374.

python -m tests.systems.chunk_agreement operations
Counted from the traced program, without a time, for a width of 4096 and 512 tokens (theirs), 28
layers (assumed), 24 x 40 cells and chunks of 20 latent frames that share 8, which are computed
twice: 1.05 of the operations of full attention over 20 latent frames, 1.09 over 80, .84 over 160,
.54 over 320.

python -m tests.systems.chunk_agreement 8 33 work/vin/weights work/vin/weights:fused_above=1.0
`configs/vin.py` for 600 steps (`--source.pool 512`), 9 minutes on two CPU cores that others shared,
jax 0.10.2: 24 films of 33 frames that are told nothing, 8 steps. Change at borders of chunks over
that elsewhere: never mixed 1.80, above level .4 1.52, at all levels 1.30, true films .94. Colours
of frames 24 apart agree by .09 (true films .77): so short a training does not keep what is shown.
"""

import dataclasses

from jvdm.models.interface import InterfaceDiT
from jvdm.recipes import require_trained
from jvdm.samplers import SynchronousMatrix
from jvdm.system import System


def system(base: System) -> System:
    """Returns `base` with all chunks at one level.

    Raises:
        ConfigError: If its network does not make a video in chunks.
    """
    lacks, why = "have no tokens of a whole video", "these tie its chunks"
    require_trained("vin", isinstance(base.model, InterfaceDiT), lacks, why)
    sampling = dataclasses.replace(base.sampling, matrix=SynchronousMatrix())
    return dataclasses.replace(base, sampling=sampling)
