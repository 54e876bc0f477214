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
made; theirs are one batch at equal levels. `configs/nfd_few_steps.py` is NFD+, their consistency
distillation, in four segments and without a critic. The cache holds 2 latent frames, all that the
nano model knows; theirs has 32.
Gain: trained on a CPU core, all films follow turns of the camera (.94 of the angle) and .32 to .61
of them pushes, which .64 to 1.0 of true films show; a student in 4 steps follows .50 to .79 of the
pushes and makes 1,232 frames/s for 276.

.venv/bin/python -m tests.systems.played_motion work/nfd/weights 28
`configs/nfd.py --num-steps 14000 --source.pool 2048 --ema-decay 0.999 --optimizer.warmup-steps 100
--optimizer.decay-fraction 0.5`, 47 minutes on a core of two that others shared, and from it
`configs/nfd_few_steps.py --num-steps 800 --source.pool 1024 --source.fresh 2 --source.skip 20000`,
3 minutes likewise; jax 0.10.2, one seed. Share of 28 films of a ball in which it goes as it was
told for two chunks, and how far on average, in widths of the picture, of turns in radians:

                  played           four steps       world
    push left     .61 (-.121)      .68 (-.110)      .86 (-.140)
    push right    .57 (+.114)      .79 (+.126)      .89 (+.177)
    push closer   .46 (+.015)      .54 (+.012)     1.00 (+.051)
    push away     .32 (-.011)      .50 (-.017)      .64 (-.039)
    turn left    1.00 (-.635)     1.00 (-.634)     1.00 (-.675)
    turn right   1.00 (+.636)     1.00 (+.630)     1.00 (+.675)
    stop          .68              .57             1.00
    none          .79              .68             1.00
    frames/s      276              1,232

After 3,600 steps pushes to the sides were followed in .71 and .64 of films, by less (-.086, +.079).
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
