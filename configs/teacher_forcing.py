"""The nano model made causal: each latent frame behind the true ones, as Self-Forcing begins.

jvdm train configs/teacher_forcing.py --workdir work/teacher_forcing
jvdm plan teacher_forcing --on h200                 0.05 GB of a device
40 steps from the shipped nano weights, a minute on two CPU cores. One latent frame of a clip is
noised, those before it are clean, those after it are noise and not seen: the first stage of Causal
Forcing (thu-ml/Causal-Forcing), and the student that `configs/self_forcing.py` goes on with.
"""

import dataclasses
from typing import Any

from jvdm.attention import FrameCausal
from jvdm.configs import nano
from jvdm.experiment import Experiment
from jvdm.samplers.timesteps import LagRows

STEPS = 64  # levels that a frame is trained at


def config() -> Experiment:
    """Returns a run of 40 steps from the shipped weights."""
    base: Any = nano.config()
    system = base.objective.system
    system = dataclasses.replace(system, model=system.model.clone(policy=FrameCausal()))
    rows = LagRows(STEPS, (STEPS,), (1,), shift=2.0)
    return dataclasses.replace(
        base,
        name="teacher_forcing",
        objective=dataclasses.replace(base.objective, system=system, rows=rows),
        optimizer=dataclasses.replace(base.optimizer, learning_rate=1e-3),
        start_from=nano.VAE_WEIGHTS,
    )
