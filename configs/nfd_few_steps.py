"""Next-Frame Diffusion in few steps, small: the consistency student of a played model.

jvdm train configs/nfd.py --workdir work/nfd
jvdm train configs/nfd_few_steps.py --workdir work/nfd_few_steps
jvdm plan nfd_few_steps --on h200                   0.06 GB of a device
jvdm stream "a large red ball rests" --weights work/nfd_few_steps/weights --system nfd \
    --at 1s "act push left"
40 steps, a minute on two CPU cores, from the weights of `configs/nfd.py`, which are its teacher
too. One frame of a clip, behind true ones and under its action, is noised to any of 48 levels, and
the student jumps from there to the end of one of four segments, where its average jumps to from the
teacher's next point: NFD+ (arXiv:2506.01380) by steps of a teacher and in segments, where theirs is
the limit of no step (sCM), with a critic. What it reaches: `configs/systems/nfd.py`.
"""

import dataclasses
from pathlib import Path
from typing import Any

from jvdm.configs import nano, nfd
from jvdm.experiment import Experiment

TEACHER = Path("work/nfd/weights")
STEPS = 4


def config() -> Experiment:
    """Returns a run of 40 steps of a student that jumps from level to level."""
    rules: Any = {"target": "consistency", "micro": 12, "chunk": 1, "lag": STEPS}
    made = nano.of_stream(nfd.config(), STEPS, TEACHER, 1e-3, **rules)
    return dataclasses.replace(made, name="nfd_few_steps")
