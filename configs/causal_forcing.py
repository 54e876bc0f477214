"""Causal Forcing's second stage, small: a causal student of jumps, from a causal teacher.

jvdm train configs/causal_forcing.py --workdir work/causal_forcing \
    --objective.teacher work/teacher_forcing/weights --start-from work/teacher_forcing/weights
jvdm plan causal_forcing --on h200                  0.06 GB of a device
40 steps, a minute on two CPU cores. The teacher is that of `configs/teacher_forcing.py`, which
makes a latent frame behind true ones as the student does (without it the shipped nano model, which
looks ahead). One frame of a clip is noised to any of 48 levels, and the student jumps from there to
where its average jumps from the teacher's next point (consistency, the second stage of Causal
Forcing++). `configs/self_forcing.py` goes on with it (`--start-from work/causal_forcing/weights`).
What it reaches: `configs/systems/self_forcing.py`.
"""

import dataclasses
from typing import Any

from jvdm.configs import nano, teacher_forcing
from jvdm.experiment import Experiment
from jvdm.training.distillation import Distillation

MICRO = 48  # levels that jumps begin at


def config() -> Experiment:
    """Returns a run of 40 steps of a student that jumps to clean frames."""
    base: Any = teacher_forcing.config()
    objective = Distillation(
        base.objective.system,
        teacher="nano",
        edges=(1.0, 0.0),
        target="consistency",
        micro=MICRO,
        source="stream",
        chunk=1,
    )
    return dataclasses.replace(
        base,
        name="causal_forcing",
        objective=objective,
        optimizer=nano.going_on(1e-3),
        start_from=nano.VAE_WEIGHTS,
    )
