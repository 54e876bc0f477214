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
Gain: .84 of the operations of full attention over 160 latent frames, but 1.09 over 80; mixed frames
take seams of `configs/vin.py` from 2.10 to 1.78. The tokens gain little in 511 steps of 256 clips:
colours of different chunks agree by .08, without tokens by .05 (true films .74).

python -m tests.systems.chunk_agreement operations
Counted from the traced program, without a time, for a width of 4096 and 512 tokens (theirs), 28
layers (assumed), 24 x 40 cells and chunks of 20 latent frames that share 8, which are computed
twice: 1.05 of the operations of full attention over 20 latent frames, 1.09 over 80, .84 over 160,
.54 over 320.

python -m tests.systems.chunk_agreement 8 33 work/vin/weights work/none/weights
`configs/vin.py` with a width of 256, five layers and `--batch-size 256 --source.pool 8192
--source.fresh 16 --objective.drop-text 0.3 --objective.rows.mean 1.0 --objective.rows.std 1.5
--ema-decay 0.9995 --optimizer.learning-rate 1.5e-3 --optimizer.decay-fraction 0.5
--objective.system.model.dtype bfloat16`, with and without `--objective.system.model.tokens 0`, 511
steps each: 35 s on one H200 that both shared, jax 0.11.2. Films of 33 frames that are told nothing,
8 steps, on two CPU cores. How well colours of frames 24 apart agree, less what those of other films
do, in the 24 films of the command and in 96 (`VIDEOS`), and the change at borders of chunks over
that elsewhere:

                            agree (24)   (96)   seam
    tokens, mixed above .4         .14    .08   1.78
    none, mixed above .4           .05    .05   1.76
    tokens, never mixed            .14          2.10
    none, never mixed              .04          2.13
    true films                     .77    .74    .94

Shared frames smooth borders. That tokens tie chunks has the paper's sign, and 96 films hardly tell
it apart from nothing. In float32, 675 steps with tokens reach .23 and .17; the twin without tokens
was lost. The losses are .2586 and .2590, after 675 steps .2376 and .2402. All are far from true
films.
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
