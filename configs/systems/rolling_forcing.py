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
Gain: trained by its recipe with nano, the frames of films twice as long as those of training are
2.1 to 3.8 times as near to the world as before, and those of films four times as long no farther;
they change more than the world does, and are nearer still if all steps roll.

.venv/bin/python -m tests.systems.own_frames 256x65 work/rolling_films/weights \
    work/rolling_forcing/weights
`configs/rolling_films.py` (`--num-steps 300 --source.pool 512 --source.fresh 1 --source.skip 5000`,
62 s) and from it `configs/rolling_forcing.py` (`--num-steps 300 --source.pool 512 --source.fresh 1
--source.skip 9000`, 275 s under load 4), once more with `--objective.chunkwise 0` and 1; two CPU
cores, jax 0.10.2, one seed. Energy distance of 256 films of 65 frames, twice as long as those of
training, to the world, of their thirds (between two halves of the world: -.04, -.06, -.07), of the
changes in their halves (-.01, -.01), and the size of changes over the world's:

                                         frames              changes      size
    whole films, guided, 16 calls   2.09    .86    .50     2.66    .73    1.46
    a window of four, untrained     4.58   1.79   2.46     2.23    .28     .62
    half of the runs roll           1.20    .86    .85      .88    .28    1.38
    all runs roll                    .68    .75    .77      .50    .53    1.57
    no run rolls                    6.70   3.43   1.80     2.70    .67    1.44

and of 64 films of 129 frames (the world: -.20, -.22, -.14, -.01, -.02):

    untrained                       4.34   1.69   2.80     1.03    .09     .78
    half of the runs roll            .91    .70    .74      .69    .45    1.71
    all runs roll                    .58    .57    .58      .68    .84    2.01

A student that never rolled cannot. That half of the steps should be made frame after frame is seen
in changes alone, which stay smaller and nearer in the later half; frames are nearer without. Half
makes half as many steps of the kind that is sampled: as many of them in twice the steps, other
seeds and theirs of blocks of three were not measured.

jvdm evaluate --weights nano --streams wave rolling_forcing --stream-frames 501
Not trained, in the five blocks at five levels below: a seam of 1.69 (wave 1.94), drift .61 of 255
(2.22) and motion .78 (1.00); two busy CPU cores, jax 0.10.2, each system in a run of its own;
`fvdm` says what the columns are. What is to be seen in it was not judged.
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
