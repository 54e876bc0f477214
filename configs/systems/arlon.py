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
coarser in training), and one autoencoder, language model and network learn together. Codes are
drawn at a temperature of .25. Weights of another network are refused.
Gain: trained for minutes on two CPU cores, colours are .18, .15 and .16 of the picture's width from
where they belong after 64 frames along a plan that is foretold, .20, .19 and .31 without one (three
sets of films), and .05 along true codes, .07 with a tenth of them wrong.

python -m tests.systems.planned_drift 8 work/arlon/weights without foretold:0.25 foretold:1 ...
`configs/arlon.py` for 1,400 steps (`--num-steps 1400 --source.pool 512 --objective.drop-plan 0.2`),
13 minutes on two CPU cores that others used too (load 6), jax 0.10.2, one seed: 24 films of the
world go on from their first latent frame, 8 steps, no guidance. Distance to the true film in places
that never change, in levels of 255; change elsewhere over the true one; how far colours are from
where they are in the true film, in widths of the picture. A number is the temperature of draws:

                       frames 1-8   29-36   57-64   motion   away 1-8   29-36   57-64
    without                  2.06    3.24    3.75      .84       .075    .177    .200
    foretold, .25            2.25    3.56    3.87      .81       .059    .141    .179
    foretold, 0              2.34    3.77    3.97      .81       .060    .153    .201
    foretold, .5             2.24    3.69    4.20      .81       .055    .176    .230
    foretold, 1              2.49    4.88    5.54      .82       .074    .225    .242
    1, one in ten wrong      2.71    5.74    6.10      .96       .064    .215    .210
    true                     1.67    2.15    2.29      .98       .038    .049    .048
    one in ten wrong         1.81    2.32    2.60     1.01       .040    .050    .067
    the codes alone          2.46    2.45    2.53     1.04       .067    .056    .061

    other films, for which .25 was not chosen (`work/arlon/weights:first=200` and `:first=300`):
    without                  1.45    2.09    2.29      .89       .050    .237    .193
    foretold, .25            1.48    2.18    2.36      .85       .069    .173    .150
    without                  1.60    2.39    2.53      .89       .053    .191    .312
    foretold, .25            1.37    1.95    2.04      .85       .046    .138    .159

From frame 29 on what moves drifts less in all sets, what stays in one; true codes keep both.
`without` is the same network without a plan, which a fifth of its clips had none of. True codes are
the upper bound: the last row of the first films is what they say when they are decoded. 110 of 256
codes are in use. What is drawn at 1 changes what should stay; how much less the plans of one prompt
differ at .25 was not measured. After 350 of 700 steps foretold codes gained nothing (away .248
after 64 frames at 1, .254 without).

Trained without noise on plans (`--objective.uncertain 0`, another session, the first films), codes
that are foretold gain nothing after 64 frames: that has the paper's sign.

                       frames 1-8   29-36   57-64   motion   away 1-8   29-36   57-64
    without                  2.27    3.60    4.04      .88       .074    .210    .195
    foretold, .25            2.38    3.69    3.88      .84       .084    .179    .196
    foretold, 1              2.60    4.44    5.26      .85       .096    .173    .180
    true                     1.76    2.21    2.32      .99       .041    .044    .060
    one in ten wrong         2.09    2.66    2.83     1.08       .043    .043    .062
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
