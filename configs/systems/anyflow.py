"""AnyFlow: one student that jumps between any two levels, in any number of steps.

jvdm generate "a large red ball rests" --system anyflow --weights work/anyflow/weights

Paper: AnyFlow: Any-Step Video Diffusion Model with On-Policy Flow Map Distillation,
arXiv:2605.13724.
Claim: as good as consistency models in few steps, and better the more steps it is given, where
those become worse.
Ours: the network is told where a jump leads (`VideoDiT.next_share`, .25 as theirs) and says the
mean velocity up to there, at first the teacher's velocity; half of the clips learn the velocity, a
quarter jumps to clean ones, a quarter jumps between any two levels (`configs/anyflow.py`). Guidance
is in the teacher's steps, along which the derivative of the mean velocity is taken as a difference;
theirs are central differences with an unguided branch at the end of the jump, which is no identity
of the guided map. `configs/anyflow_on_policy.py` is their second stage, on own clips. Not here:
causal chunks with a cache of two resolutions.
Gain: with nano, a clip in 2 jumps is as near to the world as in 4 guided steps of the teacher (8
calls), .13; more than four did not help. Trained for jumps to clean ones alone: .36, and .60 in 4.

.venv/bin/python -m tests.systems.any_steps 128 work/anyflow/weights work/clean/weights nano \
    nano:guided
`configs/anyflow.py` (`--num-steps 400 --source.pool 1024 --source.fresh 2 --source.skip 5000`,
51 s), and with `--objective.target consistency`; two busy CPU cores, jax 0.10.2, one seed. Energy
distance of 128 clips of held-out captions to the world, whose halves are -.23 apart: differences of
a few hundredths were not shown to mean anything. Jumps, or steps of nano, which are two calls each:

                               1      2      4      8     16
    this                    .417   .133   .105   .123   .144
    jumps to clean alone    .277   .362   .603   .800   .918
    nano, unguided         2.065  1.066   .625   .436   .338
    nano, guided           3.336   .234   .126   .108   .110

Then 300 steps on its own clips (`configs/anyflow_on_policy.py --start-from work/anyflow/weights
--num-steps 300 --source.pool 512 --source.fresh 2 --source.skip 9000`), of a first stage that was
made anew; two cores under load 4, 2 to 5 minutes each. In the recipe films count 10 and the second
network learns 3 times a step; in the other rows films and own clips count alike, with 5 times, and
with once at a rate of 2e-4; 900 steps of the first stage take as long:

                               1      2      4      8     16
    before                  .420   .133   .109   .126   .146
    900 steps on films      .324   .131   .114   .137   .158
    the recipe              .650   .230   .177   .182   .193
    alike, 5 times         1.221   .346   .233   .219   .221
    alike, once            1.752   .517   .295   .250   .245
    own clips alone        2.920  2.266  2.385  2.504  2.630

More steps come nearer then, as the paper says, but from farther away: the more own clips count, the
farther all are from the world. That opinions with guidance ask for another law than guided steps
have may be why; it was not tested. Where both opinions are exact, a map that errs is mended by its
clips alone (tests/training/test_on_policy.py).

All these numbers of jumps end at levels that were trained. A student of four fixed jumps, other
seeds, longer training and a GPU were not measured. On a flow that is known 800 steps reach .045,
.029, .0056 and .0012 in 1, 2, 4 and 8 jumps (tests/training/test_flow_maps.py); its teacher 1.40,
.185, .0065 and .0028.
"""

import dataclasses

from jvdm.recipes import require_trained
from jvdm.samplers import FlowMap, Unguided
from jvdm.system import System

STEPS = 4  # unless another number is asked for


def system(base: System) -> System:
    """Returns `base` in few jumps, without guidance, at levels spaced as its own.

    Raises:
        ConfigError: If its network is not told where a jump leads.
    """
    told = getattr(base.model, "next_share", 0.0) > 0
    require_trained("anyflow", told, "are not told where a jump leads", "they say what it crosses")
    levels = base.sampling.levels
    if any(field.name == "num_steps" for field in dataclasses.fields(levels)):
        levels = dataclasses.replace(levels, num_steps=STEPS)
    sampling = dataclasses.replace(
        base.sampling, levels=levels, solver=FlowMap(), guidance=Unguided()
    )
    return dataclasses.replace(base, sampling=sampling)
