"""Rolling Forcing: five blocks at five levels see each other, and every call finishes one.

jvdm stream "a large red ball rolls to the left" --system rolling_forcing --duration 20s

Paper: Rolling Forcing: Autoregressive Long Video Diffusion in Real Time, arXiv:2509.25161.
Claim: 16 frames a second on one GPU, minutes long, with little drift.
Ours: blocks of three latent frames, one row apart on five levels shifted by 5, noised anew by the
consistency solver, that see each other both ways. They read the latest finished block and the first
one of the film, the anchor, whose keys stand just before it at every length. An own row writes a
finished block, which sees itself and the cache alone, as in their second call. Their training, in
which half of the steps roll, is `configs/rolling_forcing.py`, in blocks of one latent frame and
four steps; a first frame that is encoded again is not needed, as whole films are judged.
Gain: with `nano`, which was not trained for few steps, a stream of 501 frames has a seam of 1.69
(wave 1.94), drift .61 of 255 (2.22) and motion .78 (1.00); what is to be seen in it was not judged.

jvdm evaluate --weights nano --streams wave rolling_forcing --stream-frames 501
Two busy CPU cores, jax 0.10.2, each system in a run of its own; `fvdm` says what the columns are.

What training begins with: `configs/rolling_films.py` (`--num-steps 300 --source.pool 512
--source.fresh 1 --source.skip 5000`, 258 s on two CPU cores under load 9). `python -m
tests.systems.own_frames 64x65 WEIGHTS`: energy distance of 64 films of 65 frames, twice as long as
those of training, to the world, of their thirds (between two halves of the world: -.17, -.21,
-.13), and their change over the world's:

    whole films, guided, 16 calls         1.84    .84    .32   1.40
    a window of four, in four steps       4.92   2.13   2.92    .59

What `configs/rolling_forcing.py` makes of the second row was not measured.
"""

import dataclasses

from jvdm.attention import CachedCausal
from jvdm.samplers import CachedMatrix, LagMatrix, ShiftedLevels, Unguided
from jvdm.samplers.solvers import Consistency
from jvdm.system import System

BLOCK, STEPS, SHIFT = 3, 5, 5.0  # latent frames, rows, and what the levels are shifted by


def system(base: System) -> System:
    """Returns `base` with a window of a block at each level."""
    policy = CachedCausal(2 * BLOCK, sink=BLOCK, block=BLOCK, rotary="read", free=True)
    sampling = dataclasses.replace(
        base.sampling,
        levels=ShiftedLevels(STEPS, SHIFT),
        matrix=CachedMatrix(LagMatrix(1, BLOCK), lookback=2 * BLOCK),
        solver=Consistency(),
        guidance=Unguided(),
        policy=policy,
    )
    return dataclasses.replace(base, sampling=sampling)
