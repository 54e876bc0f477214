"""Parts of main path 2: objectives, sources, optimizer, step, checkpoints."""

from jvdm.training.objective import Objective, Source
from jvdm.training.optimizer import Optimizer
from jvdm.training.state import TrainState, init_state
from jvdm.training.step import make_step

__all__ = ["Objective", "Optimizer", "Source", "TrainState", "init_state", "make_step"]
