"""A student of the shipped model that samples in four steps and without guidance.

jvdm train configs/tiny_t2v_4step.py --workdir work/tiny_t2v_4step
Its four jumps end where sixteen steps of the teacher do, with its guidance of 2.5: 4 calls of the
network for 32. The way of the teacher is made anew for every clip (`segment`): with 2,000 steps
that gives more than a consistency target (`--objective.target consistency --objective.micro 16`),
whose jumps from the edges are taught last, by jumps from points that are never sampled. Three of
ten clips have clean frames, so that pictures and clips can be given. No network is made but by
this file: whatever else the shipped weights hold goes along.
Not measured yet.
"""

import dataclasses

from jvdm.configs import tiny_t2v, vae
from jvdm.experiment import Experiment
from jvdm.training.distillation import Distillation
from jvdm.training.optimizer import Optimizer
from jvdm.training.previews import SamplePreview
from jvdm.weights.folder import EMBEDDED

# ShiftedLevels(4, shift=8): every fourth of the sixteen levels of the teacher.
EDGES = (1.0, 0.96, 8 / 9, 8 / 11, 0.0)


def config() -> Experiment:
    """Returns the run that makes the student of the shipped weights."""
    shipped = tiny_t2v.config()
    weights = EMBEDDED / "tiny_t2v"
    packaging = dataclasses.replace(shipped.package, parts=(str(weights),))
    return dataclasses.replace(
        shipped,
        name="tiny_t2v_4step",
        objective=Distillation(
            shipped.objective.system,
            teacher="tiny_t2v",
            edges=EDGES,
            micro=4,
            guidance=vae.SAMPLING.guidance.scale,
            given=0.3,
        ),
        source=dataclasses.replace(shipped.source, vae_weights=weights, fresh=16, skip=2_000_000),
        optimizer=Optimizer(learning_rate=3e-4, warmup_steps=50, decay_fraction=0.5),
        batch_size=128,
        num_steps=2_000,
        ema_decay=0.995,
        checkpoint_every=500,
        start_from=weights,
        package=packaging,
        preview=SamplePreview(packaging),
    )
