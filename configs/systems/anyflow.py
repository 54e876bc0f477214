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
of the guided map. Not here: their training on own clips with distribution matching, and causal
chunks with a cache of two resolutions.
Gain: on a flow that is known, energy distance .045, .029, .0056 and .0012 in 1, 2, 4 and 8 jumps,
and 1.40, .185, .0065 and .0028 of the teacher; with nano not measured.

tests/training/test_flow_maps.py; two CPU cores, jax 0.10.2.
"""

import dataclasses

from jvdm.samplers import FlowMap, Unguided
from jvdm.system import System

STEPS = 4  # unless another number is asked for


def system(base: System) -> System:
    """Returns `base` in few jumps, without guidance, at levels spaced as its own."""
    levels = base.sampling.levels
    if any(field.name == "num_steps" for field in dataclasses.fields(levels)):
        levels = dataclasses.replace(levels, num_steps=STEPS)
    sampling = dataclasses.replace(
        base.sampling, levels=levels, solver=FlowMap(), guidance=Unguided()
    )
    return dataclasses.replace(base, sampling=sampling)
