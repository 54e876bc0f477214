"""Self-Forcing's student, small: frames one after the other in four steps, trained on its own.

jvdm train configs/self_forcing.py --workdir work/self_forcing
jvdm plan self_forcing --on h200                    0.03 GB of a device
40 steps, two minutes on two CPU cores. The teacher is the shipped nano model, which sees whole
clips; the student is that of `configs/teacher_forcing.py` (`--start-from work/teacher_forcing/
weights`; without it the shipped weights themselves, which know no causal attention). Its clips are
made as `configs/systems/self_forcing.py` makes them, and the weights folder is sampled so. What it
reaches is said there.
"""

import dataclasses
from typing import Any

from jvdm.configs import nano, teacher_forcing
from jvdm.experiment import Experiment
from jvdm.recipes import load_system
from jvdm.training.distribution_matching import DistributionMatching


def config() -> Experiment:
    """Returns a run of 40 steps of the student and 80 of its second network."""
    base: Any = teacher_forcing.config()
    system = load_system("self_forcing", base.objective.system)
    return dataclasses.replace(
        base,
        name="self_forcing",
        objective=DistributionMatching(system, teacher="nano", score_updates=2),
        optimizer=nano.going_on(2e-4),
        start_from=nano.VAE_WEIGHTS,
    )
