"""VSA's network, small: the shipped nano model learns to attend to a few blocks.

jvdm train configs/vsa.py --workdir work/vsa        400 steps on two CPU cores
jvdm plan vsa --on h200                             0.05 GB of a device
jvdm generate "a large red ball rolls to the left" --weights work/vsa/weights

Layers of the shipped weights get VSA's port, which adds attention among means of blocks
(arXiv:2505.13389; theirs are finetuned for 4,000 steps), and a quarter of the blocks of four tokens
is attended to from the first step on. Not trained for its 400 steps yet: of two steps at a rate of
1e-3 (`tests.systems.trained_sparse`, 64 clips) the loss falls from .97 to .63, full attention's
rises from .32 to .36.
"""

import dataclasses
from typing import Any

from jvdm.attention import VSA
from jvdm.configs import nano
from jvdm.experiment import Experiment
from jvdm.training.optimizer import Optimizer

POLICY = VSA(density=0.25, block=4)


def config() -> Experiment:
    """Returns a run from the shipped weights over a small ring of clips."""
    base: Any = nano.config()
    system = base.objective.system
    system = dataclasses.replace(system, model=system.model.clone(policy=POLICY))
    packaging = dataclasses.replace(base.package, family="vsa")
    return dataclasses.replace(
        base,
        name="vsa",
        objective=dataclasses.replace(base.objective, system=system),
        optimizer=Optimizer(kind="adamw", learning_rate=2e-4, warmup_steps=10, weight_decay=0.0),
        num_steps=400,
        checkpoint_every=100,
        package=packaging,
        preview=dataclasses.replace(base.preview, package=packaging),
        start_from=nano.VAE_WEIGHTS,
    )
