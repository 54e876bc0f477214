"""VSA's network, small: the shipped nano model learns to attend to a few blocks.

jvdm train configs/vsa.py --workdir work/vsa        400 steps on two CPU cores
jvdm plan vsa --on h200                             0.05 GB of a device
jvdm generate "a large red ball rolls to the left" --weights work/vsa/weights

Layers of the shipped weights get VSA's port, which adds attention among means of blocks
(arXiv:2505.13389; theirs are finetuned for 4,000 steps), and a quarter of the blocks of four tokens
is attended to from the first step on. What 400 steps reach beside full attention:
`configs/systems/vsa.py`.
"""

import dataclasses

from jvdm.attention import VSA
from jvdm.configs import nano
from jvdm.experiment import Experiment

POLICY = VSA(density=0.25, block=4)


def config() -> Experiment:
    """Returns a run from the shipped weights over a small ring of clips."""
    base = nano.of_network("vsa", learning_rate=2e-4, policy=POLICY)
    return dataclasses.replace(base, num_steps=400, checkpoint_every=100)
