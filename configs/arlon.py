"""ARLON's model, small: a network that follows codes which a language model foretells.

jvdm train configs/arlon.py --workdir work/arlon    40 steps, a minute on two CPU cores
jvdm plan arlon --on h200                           0.18 GB of a device
jvdm stream "a large red ball rests" --weights work/arlon/weights --system arlon --duration 10s

The nano network with 16 codes for each latent frame, a decoder of two layers that foretells them,
and plans that are noised (`jvdm.models.planned`, arXiv:2410.20502; theirs is Open-Sora with a
separate autoencoder of latents, each part trained by itself; here all learn at once), on clips of
29 frames, two chunks of four latent frames. What it reaches: `configs/systems/arlon.py`.
"""

import dataclasses
from typing import Any

from jvdm.configs import nano
from jvdm.experiment import Experiment
from jvdm.models.planned import PlannedDiT
from jvdm.samplers.timesteps import CleanPrefix, LagRows, Mixture
from jvdm.training.planned import PlannedMatching

CHUNK, STEPS = 4, 8  # latent frames that are made together, and steps that make them


def config() -> Experiment:
    """Returns a run of 40 steps over a small ring of clips."""
    base: Any = nano.of_films("arlon", 29, PlannedDiT)
    rows = LagRows(STEPS, (0, STEPS), (CHUNK,), shift=2.0)
    rows = Mixture((rows, CleanPrefix(rows, first_only=1.0, ends=0.0)), (0.5, 0.5))
    objective = PlannedMatching(base.objective.system, rows)
    return dataclasses.replace(base, objective=objective)
