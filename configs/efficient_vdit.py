"""Efficient-vDiT's student, small: the shipped nano model learns tiles and four steps at once.

jvdm train configs/efficient_vdit.py --workdir work/efficient_vdit    400 steps on two CPU cores
jvdm plan efficient_vdit --on h200                  0.07 GB of a device
jvdm generate "a large red ball rolls to the left" --weights work/efficient_vdit/weights

Five latent frames attend to themselves and to the first one, which attends to all: .52 of dense
attention (arXiv:2502.06155, whose student is a multi-step consistency model too). Its jumps are
those of `tiny_t2v_4step`: each ends where four guided steps of the teacher do, which attends to
everything. What it reaches beside a student with dense attention: `configs/systems/efficient_vdit`.
"""

import dataclasses
from typing import Any

from jvdm.attention import AttentionTile
from jvdm.configs import nano
from jvdm.experiment import Experiment
from jvdm.training.distillation import Distillation

NUM_FRAMES = 17
POLICY = AttentionTile(references=(1,), recall_queries=0)
# ShiftedLevels(4, shift=2): every fourth of sixteen levels of the teacher.
EDGES = (1.0, 6 / 7, 2 / 3, 0.4, 0.0)


def config() -> Experiment:
    """Returns a run from the shipped weights over a small ring of clips."""
    base: Any = nano.of_films("efficient_vdit", NUM_FRAMES, learning_rate=1e-3, policy=POLICY)
    objective = Distillation(base.objective.system, teacher="nano", edges=EDGES)
    return dataclasses.replace(base, objective=objective, num_steps=400, checkpoint_every=100)
