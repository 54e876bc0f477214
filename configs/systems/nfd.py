"""Next-Frame Diffusion: a game that is played frame after frame, each under an action.

jvdm stream "a large red ball rests" --weights work/nfd/weights --system nfd --at 1s "act push left"

Paper: Playing with Transformer at 30+ FPS via Next-Frame Diffusion, arXiv:2506.01380.
Claim: more than 30 frames a second of a game on one A100 with 310M parameters, by attention that
is causal in blocks, few steps of a consistency model and speculation.
Ours: the rows (a latent frame is finished before the next begins), a cache of keys and values,
which their abstract does not name, actions through the modulation, finished frames that are told a
little noise (ours are scaled and not noised), and speculation: while frames are written and lines
are waited for, up to four chunks are made as if the action were held (`jvdm.pipeline.foresight`).
They follow each other, so that those that are taken have the bits of those that would have been
made; theirs are one batch at equal levels. Not here: their consistency distillation. The cache
holds 2 latent frames, all that the nano model knows; theirs has 32.
Gain: trained for minutes on two CPU cores, films follow .64 to .71 of the pushes that true films
show in .86 to .89.

.venv/bin/python -m tests.systems.played_motion work/nfd/weights 28
`configs/nfd.py` for 1,200 steps and on to step 3,600 of 4,800 (`--source.pool 2048`), about 10
minutes on two CPU cores that others shared, jax 0.10.2. Share of 28 films of a ball in which it
goes as it was told for two chunks, and how far on average, in widths of the picture:

                  played           world
    push left     .71 (-.086)      .86 (-.140)
    push right    .64 (+.079)      .89 (+.177)
    stop          .68 (+.000)     1.00 (+.000)
    none          .68 (-.001)     1.00 (+.000)

After the first 1,200 steps pushes were followed in .14 and .36 of 14 films; a stream made 278
frames/s meanwhile. The stop was one of a ball at rest; the command pushes it before now, and reads
pushes in depth and turns of the camera too (of true films .675 radians of the .667 that are told,
in all of 28), for which no model was trained long enough yet.
With `--weights nano --seed 0 --duration 20s` a film of 31 chunks has the same pixels with four
chunks ahead as with none (`--sampling.matrix.ahead 0`): 30 chunks, 270 calls of the network, were
made or begun before they were asked for. What that gains was not measured: the machine was busy
(191 and 216 frames/s without, 321 and 142 with).
"""

import dataclasses

from jvdm.attention import CachedCausal
from jvdm.samplers import AutoregressiveMatrix, CachedMatrix, Stabilised
from jvdm.system import System

KEPT = 2  # latent frames
AHEAD = 4  # chunks on a guess


def system(base: System) -> System:
    """Returns `base` frame by frame, with a cache."""
    rules = {
        "matrix": CachedMatrix(AutoregressiveMatrix(), lookback=KEPT, ahead=AHEAD),
        "policy": CachedCausal(frames=KEPT, rotary="read"),
        "context": Stabilised(0.02),
    }
    return dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, **rules))
