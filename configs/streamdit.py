"""StreamDiT's model, small: rows of a buffer whose chunks are each in a segment of the levels.

jvdm train configs/streamdit.py --workdir work/streamdit  40 steps, a minute on two CPU cores
jvdm plan streamdit --on h200                       0.09 GB of a device
jvdm stream "a large red ball rests" --weights work/streamdit/weights --system streamdit

The nano network on windows of eight latent frames of films of 33 frames, which begin with the film
or later, as those of a stream do. Partitions are mixed: chunks of one, two or four frames, each at
a level of its own in its segment, or all eight at one (arXiv:2507.03745; theirs are 16 frames and
its 4B network attends in windows). What it reaches: `configs/systems/streamdit.py`.
"""

import dataclasses
from typing import Any

from jvdm.configs import nano
from jvdm.experiment import Experiment
from jvdm.models import VideoDiT
from jvdm.samplers import ShiftedLevels
from jvdm.samplers.timesteps import Shifted, StreamPartitions

FILM, SHOWN = 33, 29  # frames of a film, and those of eight latent ones
STEPS, SHIFT = 16, 3.0  # of a latent frame, and what levels are shifted by


def config() -> Experiment:
    """Returns a run of 40 steps over a small ring of films."""
    base: Any = nano.of_films("streamdit", SHOWN, VideoDiT, position_waves=4)
    system = base.objective.system
    levels = ShiftedLevels(STEPS, shift=SHIFT)
    system = dataclasses.replace(
        system, sampling=dataclasses.replace(system.sampling, levels=levels)
    )
    rows = Shifted(StreamPartitions((1, 2, 4, 8)), SHIFT)
    world = dataclasses.replace(base.source.world, num_frames=FILM)
    return dataclasses.replace(
        base,
        objective=dataclasses.replace(base.objective, system=system, rows=rows),
        source=dataclasses.replace(base.source, world=world, window=8),
    )
