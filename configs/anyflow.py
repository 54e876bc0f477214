"""A flow map of the shipped nano model: one student for any number of steps.

jvdm train configs/anyflow.py --workdir work/anyflow
jvdm plan anyflow --on h200                         0.06 GB of a device
40 steps from the shipped weights, a minute on two CPU cores. The network is told where a jump ends
(`next_share`), and jumps between any two of seventeen levels of the guided teacher are trained
(`--objective.target flow_map`). The weights folder is sampled without guidance, in four steps or
another number (`--num-inference-steps`; 1, 2, 4, 8 and 16 were measured). What it reaches is said
in `configs/systems/anyflow.py`.
"""

import dataclasses
from typing import Any

from jvdm.configs import nano
from jvdm.experiment import Experiment
from jvdm.recipes import load_system
from jvdm.training.distillation import Distillation

SHARE = 0.25  # of the level that a jump leads to in what is told of levels


def config() -> Experiment:
    """Returns a run of 40 steps from the shipped weights."""
    base: Any = nano.of_network("anyflow", learning_rate=1e-3, next_share=SHARE)
    objective = Distillation(
        load_system("anyflow", base.objective.system),
        teacher="nano",
        edges=(1.0, 0.0),
        target="flow_map",
        micro=16,
    )
    return dataclasses.replace(base, objective=objective)
