"""AnyFlow's second stage, small: a flow map that learns from clips of its own.

jvdm train configs/anyflow_on_policy.py --workdir work/on_policy --start-from work/anyflow/weights
jvdm plan anyflow_on_policy --on h200               0.03 GB of a device
40 steps, two minutes on two CPU cores. The student is that of `configs/anyflow.py` (without
`--start-from` the shipped nano model, whose jumps are single steps). Three jumps make a clip,
which is compared with the guided teacher's law, and it goes on learning from noised films, which
count ten times (`jvdm.training.on_policy`). What it reaches: `configs/systems/anyflow.py`.
"""

import dataclasses
from typing import Any

from jvdm.configs import anyflow, nano
from jvdm.experiment import Experiment
from jvdm.training.on_policy import OnPolicyFlowMap


def config() -> Experiment:
    """Returns a run of 40 steps of the student and of its second network."""
    base: Any = anyflow.config()
    films = base.objective
    rules = {"score_updates": 3, "score_rate": 2.0, "forward": 10.0}
    objective = OnPolicyFlowMap(films.system, teacher=films.teacher, micro=films.micro, **rules)
    return dataclasses.replace(
        base, name="anyflow_on_policy", objective=objective, optimizer=nano.going_on(1e-4)
    )
