"""DualParal: long videos block by block, layers on several devices; no training.

jvdm generate "a large red ball rolls to the left" --system dualparal --num-frames 125

Paper: Minute-Long Videos with Dual Parallelisms (DualParal), arXiv:2505.21070.
Claim: 1,025 frames on eight RTX 4090 with up to 6.54 times less latency and 1.48 times less memory;
that the model is Wan 2.1, with blocks and context of 8 latent frames, is not in its abstract:
unverified.
Ours: a block of four latent frames makes a step with the four frames before it, which are a step
cleaner and are told its level, and with keys and values of the first four of the next block, which
it made just before. Blocks follow each other through the stages of layers (`--mesh stage=2`: layers
on two devices, the same bits). Noise is that of a pool, in which near frames never meet. 4 and 4,
so that a window has the 8 frames that the shipped model knows; a block enters when what it reads is
settled, so that results are those of one device also where there are fewer blocks than devices.
Gain: no speed was measured; pixels change 1.36 and 1.48 times the median at borders of blocks on
`nano`.

Measured with the shipped `nano` (`--weights nano --num-frames 109`: six blocks, 48 rows), seeds 0
and 1: the change of pixels at the borders of blocks is 1.36 and 1.48 of the median change; that
model was trained on windows of 3 latent frames.
Latents on a CPU in float32, 45 frames: two and four stages of a random model have the bits of one
device (`tests/models/test_blockwise.py`; so had three of `nano`, by a script that is not kept).
`branch=2` moves those of random models by 2.4e-7 to 7.2e-7 (of 2.9): a device has half of the rows,
which XLA fuses and multiplies otherwise. Bits are those of a compiler: without its simplification
of algebra two stages alone differed by 7.2e-7. Speed was not measured.
"""

import dataclasses

from jvdm.attention import NextBlock
from jvdm.models.blockwise import BlockWise
from jvdm.samplers import PoolPermute, StaircaseMatrix
from jvdm.system import System

BLOCK, CONTEXT = 4, 4


def system(base: System) -> System:
    """Returns `base` with its network shown blocks."""
    sampling = dataclasses.replace(
        base.sampling,
        matrix=StaircaseMatrix(BLOCK, CONTEXT),
        noise=PoolPermute(BLOCK, CONTEXT),
        policy=NextBlock(BLOCK, CONTEXT),
    )
    return dataclasses.replace(base, model=BlockWise(base.model, BLOCK, CONTEXT), sampling=sampling)
