"""StreamDiT: a moving buffer of chunks, each a part of the way less noisy than the next.

jvdm generate "a large red ball rolls to the left" --system streamdit --stream --duration 60s

Paper: StreamDiT: Real-Time Streaming Text-to-Video Generation, arXiv:2507.03745.
Claim: 16 frames a second of 512p on one H100 after distillation.
Ours: chunks of two latent frames, four steps apart, so that every four calls finish one (theirs: 2
of 16 frames, 16 steps apart for their teacher, 1 for their student). The stream begins with a clip
of the buffer's length that is noised, as theirs; `--density 0.5` takes the paper's windows, which
shift in every second layer and do not wrap around, so that the first and the last frames of the
buffer stay apart; without it attention is full, as the shipped model was trained. It met waves in
15 % of its draws and is not distilled. `configs/streamdit.py` is trained with the paper's mixed
partitions, and `configs/streamdit_few_steps.py` distils it: every call finishes a chunk, without
guidance. A student of `tiny_t2v` (`--objective.source stream` of `configs/tiny_t2v_4step.py`)
brings its own matrix too, one jump apart.
Gain: a stream of 501 frames at 933 frames/s on an H200, drift 4.31 of 255, motion .91 (true .52).
Trained for it, a nano network shows the object as well in ten times its training length as in one
(.66 of frames, .68); its student in an eighth of the calls (.75, .74).

python -m tests.systems.drift_curves work/streamdit/weights 290x4 streamdit
`configs/streamdit.py --num-steps 6000 --source.pool 1024 --ema-decay 0.999
--optimizer.warmup-steps 100 --optimizer.decay-fraction 0.5`, 53 minutes on a CPU core of two that
others shared, and from it `configs/streamdit_few_steps.py --num-steps 400 --source.pool 512
--source.fresh 2 --source.skip 20000`, 3 minutes; jax 0.10.2, one seed, 16 films of objects that
rest. Share of frames that show the object well by quarters of the film, how far colours are from
those of the first quarter at the end, and seam (docs/streams.md says what they are):

                                frames   shown                drift   seam
    16 steps, guided                29   .64 .69 .69 .69       1.09   1.48
                                   290   .68 .68 .68 .58        .64   1.65
                                   505   .68 .66 .55 .61        .90   1.68
    4 steps                         29   .71 .76 .76 .73       1.36   1.51
                                   290   .78 .79 .74 .69        .74   1.73
                                   505   .78 .74 .69 .68        .91   1.75
    clips of 29, one after another 505   .57 .34 .32 .33       2.35   2.86

A frame takes 1.4 ms of a core, .3 of the student's.

Measured as `fvdm` was, in one run with it (its table and command): the fastest
of five, 464 frames/s, seam 1.99, the least drift, 1.75 of 255 after 501 frames, 1.17 times the
motion, PSNR 26.9 dB to the clip of the same seed.
At the paper's size (4B parameters, 64 frames of 512 x 512, random weights; `jvdm bench streams`) a
call takes 211 ms on an H200 and gives 8 frames, with decoding 37 frames/s.
`tiny_t2v` on an H200: 933 frames/s, seam 3.42, drift 4.31 after 501 frames, .91 of the motion where
true films keep .52 (`fvdm`), PSNR 29.3 dB.
"""

import dataclasses

from jvdm.attention import Window
from jvdm.samplers import LagMatrix
from jvdm.system import System


def system(base: System) -> System:
    """Returns `base` in chunks of two latent frames."""
    windows = Window(density=1.0, shifted=True, recall_queries=0)
    given = base.sampling.matrix
    matrix = given if isinstance(given, LagMatrix) else LagMatrix(lag=4, block=2)
    rules = {"matrix": matrix, "policy": windows}
    return dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, **rules))
