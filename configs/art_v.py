"""ART.V's model, small: a network of single frames that is shown the two before and the first.

jvdm train configs/art_v.py --workdir work/art_v    40 steps, a minute on two CPU cores
jvdm plan art_v --on h200                           0.13 GB of a device
jvdm stream "a large red ball rests" --weights work/art_v/weights --system art_v --duration 10s

The nano network without attention between frames, with a mask of what it copies of the frame
before, on clips of 33 frames whose references are noised (arXiv:2311.18834; theirs starts from
Stable Diffusion 2.1; here four frames share a latent, and text and network start from noise). What
it reaches: `configs/systems/art_v.py`.
"""

import dataclasses
from typing import Any

from jvdm.configs import nano
from jvdm.experiment import Experiment
from jvdm.models.next_frame import NextFrameDiT
from jvdm.training.next_frame import NextFrameMatching


def config() -> Experiment:
    """Returns a run of 40 steps over a small ring of clips."""
    base: Any = nano.of_films("art_v", 33, NextFrameDiT)
    return dataclasses.replace(base, objective=NextFrameMatching(base.objective.system))
