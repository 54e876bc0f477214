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
coarser in training), and one autoencoder, language model and network learn together. Weights of
another network are refused.
Gain: what true codes say keeps still places within 3.2 levels of 255 after 64 frames and colours
within .07 of the picture's width, 4.9 and .25 without a plan; with a tenth of them wrong 3.6 and
.08. Codes that are foretold gain nothing yet after 350 steps of training.

python -m tests.systems.planned_drift 8 work/arlon/weights
`configs/arlon.py`, 350 of 700 steps (`--objective.drop-plan 0.2 --source.pool 512`; stopped before
its learning rate fell), 10 minutes on two CPU cores that others used too (load 10), jax 0.10.2: 24
films of the world go on from their first latent frame, 8 steps, no guidance. Distance to the true
film in places that never change, in levels of 255; change elsewhere over the true one; how far
colours are from where they are in the true film, in widths of the picture:

                  frames 1-8   29-36   57-64   motion   away 1-8   29-36   57-64
    without             3.68    4.41    4.89     1.16       .109    .252    .254
    foretold            3.48    4.85    5.36     1.16       .111    .240    .248
    one in ten wrong    3.96    6.37    6.39     1.27       .129    .254    .272
    true                2.54    3.02    3.19     1.30       .053    .066    .073
    one in ten wrong    3.10    3.59    3.64     1.42       .052    .066    .080
    the codes alone     2.93    2.91    2.98     1.07       .054    .052    .056

`without` is the same network without a plan, which a fifth of its clips had none of. True codes
are the upper bound: the last row is what they say when they are decoded. 102 of 256 codes are in
use. The language model says the next code with 1.16 nats, and its draws change what should stay;
lower temperatures (`foretold:0.5`), training without noise on plans and longer training were not
measured.
"""

import dataclasses

from jvdm.models.planned import PlannedDiT
from jvdm.recipes import require_trained
from jvdm.samplers import AutoregressiveMatrix, WindowedMatrix
from jvdm.system import System

CHUNK = 4  # latent frames that are made together; as many finished ones are beside them


def system(base: System) -> System:
    """Returns `base` in chunks of frames that follow one plan.

    Raises:
        ConfigError: If its network makes no plan.
    """
    lacks, why = "make no plan", "chunks of frames follow one"
    require_trained("arlon", isinstance(base.model, PlannedDiT), lacks, why)
    matrix = WindowedMatrix(AutoregressiveMatrix(CHUNK), 2 * CHUNK)
    sampling = dataclasses.replace(base.sampling, matrix=matrix)
    return dataclasses.replace(base, sampling=sampling)
