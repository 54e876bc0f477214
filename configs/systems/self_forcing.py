"""Self-Forcing: a few steps for each latent frame, behind frames that the model made itself.

jvdm stream "a large red ball rests" --weights work/self_forcing/weights --duration 10s

Paper: Self Forcing: Bridging the Train-Test Gap in Autoregressive Video Diffusion,
arXiv:2506.08009.
Claim: streams in real time on one GPU with less than a second of delay, at least as good as slower
models that are not causal.
Ours: the rows (a latent frame is finished in four steps before the next begins, noised anew after
each), the cache of keys and values that a row of its own writes, and the training on what the
student made (`jvdm.training.distribution_matching`): runs are left at a random step, the gradient
goes through that call alone and not through the cache, and the law of what was made is compared
with that of the guided teacher. Frames of a chunk: ours 1 of 3 in a clip of nano, theirs 3 of 21.
Causal Forcing ends with the same stage; its second one, consistency from a causal teacher, is
`configs/causal_forcing.py`. An adversarial term is an option (`--objective.adversarial`, as DMD2
has it). Not here: their SiD loss, and the regression of pairs of noise and film that they begin
with but as an ablation; ours begins as a causal model behind true frames, as Causal Forcing says.
Gain: with nano, the second and third frame of a clip are 1.6 and 2.1 times as near to the world as
after the same training behind true frames; the first one is not nearer. An adversarial term takes
15, 28 and 26 % more off the distance of the three.

.venv/bin/python -m tests.systems.own_frames 256 nano work/teacher_forcing/weights:autoregressive \
    work/teacher_forcing/weights:self_forcing work/self_forcing/weights work/true/weights
`configs/teacher_forcing.py` (`--num-steps 500 --source.pool 1024 --source.fresh 2 --source.skip
5000`, 35 s and 56 s before) and from it `configs/self_forcing.py` (`--num-steps 300 --source.pool
1024 --source.fresh 2 --source.skip 9000`, 130 s), once more with `--objective.past true`; two CPU
cores, jax 0.10.2, one seed. Energy distance of 256 clips of held-out captions to the world, of each
latent frame (between two halves of the world: .004, -.05, -.04), and behind true frames:

                                       calls  frame 1    2      3     behind true 2    3
    nano, guided, whole clips            16    .108    .128   .115
    teacher forcing, guided, frames      48    .200    .097   .086
    the same in four steps               14    .602   1.017   .901        .086   .043
    matched behind true frames           14    .688    .734   .841        .285   .282
    matched behind own frames            14    .787    .469   .396        .189   .175

What frames lose behind own ones instead of true ones is .93 and .86 before, .45 and .56 after
training behind true ones, .28 and .22 after training behind own ones. Four steps stay worse than
many with guidance; more steps of training, other seeds and a GPU were not measured.

The adversarial term, from the same weights with `--objective.adversarial`, in later runs of all
three (157, 198 and 227 s on two CPU cores under load 7), as above, and how large changes from frame
to frame are over those of the world:

                                       frame 1    2      3     changes    behind true 2    3
    matched behind own frames             .763   .465   .399     1.13        .193   .177
    with a critic of weight .03           .751   .449   .387     1.13        .189   .175
    with a critic of weight .3            .651   .333   .295     1.12        .157   .153

The critic itself has learnt little by then: its error is 1.36, and was log 4 = 1.39 at first.
Higher weights, a faster second network (`--objective.score-rate`) and other seeds were not
measured.

Causal Forcing's second stage, from the same weights, and Self-Forcing's first: consistency by
`configs/causal_forcing.py` (`--num-steps 300 --source.pool 1024 --source.fresh 2 --source.skip
5000`), and pairs by `python -m tests.systems.paired_student frames 300 work/teacher_forcing/weights
work/teacher_forcing/weights work/frames` and `... films 300 nano work/teacher_forcing/weights
work/paired`; 228, 326 and 253 s on two CPU cores under load 8. In four steps as above, and how
large changes from frame to frame are over those of the world:

                                       frame 1    2      3     changes    behind true 2    3
    teacher forcing in four steps         .595   .995   .879      .85
    consistency, causal teacher           .519   .216   .126     1.06        .006  -.011
    pairs, causal teacher                 .263   .170   .125     1.00        .002  -.016
    pairs, teacher of whole clips         .202   .194   .181      .99        .006  -.003

All are nearer than matching alone, and behind true frames as near as the world to itself. Pairs of
a causal teacher leave the third frame nearer, and the first one less, as their teachers do. That
pairs of one that looks ahead blur, as Causal Forcing says, is not to be seen in three latent
frames; longer clips and other seeds were not measured.

Matching from two of these (`configs/self_forcing.py` as above but for `--start-from`), which were
trained anew for it: how far two runs of one recipe may be apart is to be seen in the rows of
consistency, above and below. 159 and 207 s under load 9:

                                       frame 1    2      3     changes    behind true 2    3
    consistency, causal teacher           .386   .178   .129     1.05        .009  -.013
    and then matched                      .654   .391   .407     1.15        .141   .167
    pairs, causal teacher                 .231   .163   .140     1.00        .002  -.008
    and then matched                      .627   .410   .414     1.14        .138   .150

The paper's order, in which matching improves what the second stage leaves, is not seen: from both
starts 300 steps of it lead away from the world, nearly to where they lead from teacher forcing
(.763, .465 and .399 without a critic), and behind true frames too. So it is where matching itself
ends here, whatever it begins with. Whether that is for the guidance of its teacher or for a second
network that is moved twice a step was not measured.
"""

import dataclasses

from jvdm.attention import CachedCausal
from jvdm.samplers import AutoregressiveMatrix, CachedMatrix, ShiftedLevels, Unguided
from jvdm.samplers.solvers import Consistency
from jvdm.system import System

BLOCK, KEPT = 1, 2  # latent frames of a chunk, and of those before it that are read
STEPS, SHIFT = 4, 5.0  # of a chunk, and what their levels are shifted by


def system(base: System) -> System:
    """Returns `base` chunk by chunk in few steps without guidance, with a cache."""
    sampling = dataclasses.replace(
        base.sampling,
        levels=ShiftedLevels(STEPS, SHIFT),
        matrix=CachedMatrix(AutoregressiveMatrix(BLOCK), lookback=KEPT),
        solver=Consistency(),
        guidance=Unguided(),
        policy=CachedCausal(KEPT, block=BLOCK, rotary="read"),
    )
    return dataclasses.replace(base, sampling=sampling)
