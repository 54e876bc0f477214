"""StreamDiT's student, small: every call of the network finishes a chunk.

jvdm train configs/streamdit.py --workdir work/streamdit
jvdm train configs/streamdit_few_steps.py --workdir work/streamdit_few_steps
jvdm plan streamdit_few_steps --on h200             0.10 GB of a device
jvdm stream "a large red ball rests" --weights work/streamdit_few_steps/weights
40 steps, two minutes on two CPU cores, from the weights of `configs/streamdit.py`, which are its
teacher too. A buffer holds four chunks of two latent frames, one in each of four segments of the
levels, and the student jumps to the end of each segment, where four guided steps of the teacher
lead (arXiv:2507.03745; theirs has 128 steps in 8 segments). The folder is sampled so, without
guidance. What it reaches: `configs/systems/streamdit.py`.
"""

import dataclasses
from pathlib import Path
from typing import Any

from jvdm.configs import nano, streamdit
from jvdm.experiment import Experiment
from jvdm.samplers import ShiftedLevels
from jvdm.training.distillation import Distillation

TEACHER = Path("work/streamdit/weights")
SEGMENTS = 4


def config() -> Experiment:
    """Returns a run of 40 steps of a student of buffers."""
    base: Any = streamdit.config()
    levels = ShiftedLevels(SEGMENTS, shift=streamdit.SHIFT)
    objective = Distillation(
        base.objective.system,
        teacher=str(TEACHER),
        edges=tuple(levels().tolist()),
        micro=streamdit.STEPS // SEGMENTS,
        source="stream",
    )
    return dataclasses.replace(
        base,
        name="streamdit_few_steps",
        objective=objective,
        optimizer=nano.going_on(5e-4),
        start_from=TEACHER,
    )
