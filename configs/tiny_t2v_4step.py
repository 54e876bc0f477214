"""A student of the shipped model that samples in four steps and without guidance.

jvdm train configs/tiny_t2v_4step.py --workdir work/tiny_t2v_4step
jvdm plan tiny_t2v_4step --on h200                  20.72 GB of a device
Its four jumps end where sixteen steps of the teacher do, with its guidance: 4 calls of the
network for 32. The teacher's way is made anew for every clip (`segment`), and only jumps that are
sampled are learnt. `--objective.target consistency --objective.micro 16` costs half as much a step
(6 forward passes for 11), and spends most of it on points inside of segments. On a flow that is
known (`tests/training/test_distillation.py`) 600 steps of each reach energy distances of .0049 and
.0047, four steps of the teacher .0065: that is no order between them, and `consistency` was not
trained here. Three of ten clips have clean frames, so that pictures and
clips can be given. `--objective.source stream` makes a student of `streamdit`.

`jvdm plan tiny_t2v_4step --on h200`: 7.2e13 operations a step, and 19 GB that the backward pass
keeps. `--num-steps 1500` on one NVIDIA H200 (jax 0.11.2): 230 ms a step, 556 clips/s, 31.5 % model
FLOP utilisation, 345 s and 108 s before the first step; the loss fell from .073 to .037. `jvdm
evaluate` of these weights on two CPU cores, 64 prompts of sets A and C, 95 % intervals: count right
in all frames 1.0 (.94 to 1) and .906 (.81 to .97), verbs of all objects 1.0 and .969, colour set
1.0 and .922; their teacher, the second edition of the shipped model, in 16 guided steps, 256
prompts: 1.0 and .969, 1.0 and .973, 1.0 and .984. 16 clips take 35.8 s with decoding. No weights of
it ship: the wheel has room for 2 MB.
"""

import dataclasses

from jvdm.configs import tiny_t2v
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
