"""The nano model on longer films and rows of waves: how Rolling Forcing's student begins.

jvdm train configs/rolling_films.py --workdir work/rolling_films
jvdm plan rolling_films --on h200                   0.10 GB of a device
40 steps from the shipped nano weights, two minutes on two CPU cores. Films of 33 frames, nine
latent ones, whose frames have one level, or are a row apart, or follow one after the other: the
teacher of `configs/rolling_forcing.py`, which judges whole films, and its student at first.
"""

import dataclasses
from typing import Any

from jvdm.configs import nano
from jvdm.experiment import Experiment
from jvdm.models import VideoDiT
from jvdm.samplers.timesteps import LagRows

FRAMES = 33
STEPS, SHIFT = 4, 5.0  # of a latent frame in a rolling window, and what its levels are shifted by


def config() -> Experiment:
    """Returns a run of 40 steps from the shipped weights."""
    base: Any = nano.of_films("rolling_films", FRAMES, VideoDiT)
    rows = LagRows(STEPS, (0, 1, STEPS), (1,), shift=SHIFT)
    return dataclasses.replace(
        base,
        objective=dataclasses.replace(base.objective, rows=rows),
        optimizer=dataclasses.replace(base.optimizer, learning_rate=1e-3),
        start_from=nano.VAE_WEIGHTS,
    )
