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

from jvdm.configs import nano, streamdit
from jvdm.experiment import Experiment

TEACHER = Path("work/streamdit/weights")
SEGMENTS = 4


def config() -> Experiment:
    """Returns a run of 40 steps of a student of buffers."""
    micro = streamdit.STEPS // SEGMENTS
    made = nano.of_stream(streamdit.config(), SEGMENTS, TEACHER, 5e-4, micro=micro)
    return dataclasses.replace(made, name="streamdit_few_steps")
