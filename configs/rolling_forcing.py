"""Rolling Forcing's student, small: four latent frames at four levels, trained on its own films.

jvdm train configs/rolling_forcing.py --workdir work/rolling_forcing \
    --objective.teacher work/rolling_films/weights --start-from work/rolling_films/weights
jvdm plan rolling_forcing --on h200                 0.03 GB of a device
40 steps. Teacher and student begin as `configs/rolling_films.py` made them (without it the shipped
nano model). A window of four latent frames, a row apart, that see each other; the first of the film
and the latest four are read from a cache. Half of the films roll so, the others are made frame
after frame, and the gradient goes through calls whose windows tile the film (arXiv:2509.25161).
What it reaches: `configs/systems/rolling_forcing.py`.
"""

import dataclasses
from typing import Any

from jvdm.attention import CachedCausal
from jvdm.configs import nano, rolling_films
from jvdm.experiment import Experiment
from jvdm.samplers import CachedMatrix, LagMatrix, ShiftedLevels, Unguided
from jvdm.samplers.solvers import Consistency
from jvdm.training.distribution_matching import DistributionMatching


def config() -> Experiment:
    """Returns a run of 40 steps of the student and 80 of its second network."""
    base: Any = rolling_films.config()
    steps = rolling_films.STEPS
    system = base.objective.system
    sampling = dataclasses.replace(
        system.sampling,
        levels=ShiftedLevels(steps, rolling_films.SHIFT),
        matrix=CachedMatrix(LagMatrix(1), lookback=1),
        solver=Consistency(),
        guidance=Unguided(),
        policy=CachedCausal(1 + steps, sink=1, rotary="read", free=True),
    )
    system = dataclasses.replace(system, sampling=sampling)
    return dataclasses.replace(
        base,
        name="rolling_forcing",
        objective=DistributionMatching(system, teacher="nano", score_updates=2, chunkwise=0.5),
        optimizer=nano.going_on(2e-4),
        batch_size=8,
    )
