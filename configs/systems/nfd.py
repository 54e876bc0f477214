"""Next-Frame Diffusion: a game that is played frame after frame, each under an action.

jvdm train configs/nfd.py --workdir work/nfd --num-steps 1200 --source.pool 2048
jvdm stream "a large red ball rests" --weights work/nfd/weights --system nfd --at 1s "act push left"

Paper: Playing with Transformer at 30+ FPS via Next-Frame Diffusion, arXiv:2506.01380.
Claim: more than 30 frames a second of a game on one A100 with 310M parameters, by a cache of keys
and values, few steps and speculation.
Ours: the rows (a latent frame is finished before the next begins), the cache, actions through the
modulation, finished frames that are told a little noise (ours are scaled and not noised), and
speculation (`jvdm.samplers.speculate`): chunks of a guess follow each other, so that those that are
taken have the bits of those that would have been made; theirs are one batch at equal levels. Not
here: their consistency distillation. The cache holds 2 latent frames, all that the nano model
knows; theirs has 32.
Gain: not measured yet.
"""

import dataclasses

from jvdm.attention import CachedCausal
from jvdm.samplers import AutoregressiveMatrix, CachedMatrix, Stabilised
from jvdm.system import System

KEPT = 2  # latent frames


def system(base: System) -> System:
    """Returns `base` frame by frame, with a cache."""
    rules = {
        "matrix": CachedMatrix(AutoregressiveMatrix(), lookback=KEPT),
        "policy": CachedCausal(frames=KEPT, rotary="read"),
        "context": Stabilised(0.02),
    }
    return dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, **rules))
