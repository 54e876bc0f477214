"""DyDiT++'s network, small: the shipped nano model learns what it may leave out.

jvdm train configs/dydit.py --workdir work/dydit    400 steps, 8 minutes on two CPU cores
jvdm plan dydit --on h200                           0.09 GB of a device
jvdm generate "a large red ball rolls to the left" --weights work/dydit/weights --system dydit

Routers that let everything through are added to the shipped weights, and learn beside them until
the layers compute seven tenths (arXiv:2410.03456, arXiv:2504.06803; theirs train 200,000 steps).
Routers of so short a run begin nearer to closing. What it reaches: `configs/systems/dydit.py`.
"""

import dataclasses
from typing import Any

from jvdm.configs import nano
from jvdm.experiment import Experiment
from jvdm.models.dynamic_width import DynamicWidth
from jvdm.samplers.timesteps import Drawn
from jvdm.training.dynamic_matching import DynamicMatching

RULE = DynamicWidth(groups=8, temperature=1.0, noise=0.05, bias=2.0, token_bias=2.0)


def config() -> Experiment:
    """Returns a run from the shipped weights over a small ring of clips."""
    base: Any = nano.of_network("dydit", learning_rate=1e-3, dynamic=RULE)
    objective = DynamicMatching(
        base.objective.system,
        rows=Drawn(stratified=True),
        target=0.7,
        full_steps=20,
        falling_steps=100,
        weight=5.0,
        complete_steps=120,
    )
    return dataclasses.replace(base, objective=objective, num_steps=400, checkpoint_every=100)
