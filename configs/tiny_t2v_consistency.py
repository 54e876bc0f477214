"""The student of `tiny_t2v_4step`, from jumps that begin anywhere in a segment.

jvdm train configs/tiny_t2v_consistency.py --workdir work/tiny_t2v_consistency
jvdm plan tiny_t2v_consistency --on h200            20.74 GB of a device
A phased consistency model (arXiv:2405.18407): from each of the 64 levels of the teacher that 16
steps a segment make, the jump to the segment's end is compared with that of the average from one
step of the teacher further on. A step has 6 forward passes for 11 of `tiny_t2v_4step`, which took
230 ms on one NVIDIA H200; 3,000 steps should take about as long as its 1,500, 345 s, and 108 s
before the first. Not trained yet: no number is known.
"""

import dataclasses
from typing import Any

from jvdm.configs import tiny_t2v_4step
from jvdm.experiment import Experiment


def config() -> Experiment:
    """Returns the run that makes the student of the shipped weights."""
    base: Any = tiny_t2v_4step.config()
    changes = {"target": "consistency", "micro": 16, "loss_kind": "huber"}
    return dataclasses.replace(
        base,
        name="tiny_t2v_consistency",
        objective=dataclasses.replace(base.objective, **changes),
        num_steps=3_000,
        ema_decay=0.99,
    )
