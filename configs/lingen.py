"""LinGen's model, small: scans and windows take the place of full attention.

jvdm train configs/lingen.py --workdir work/lingen  40 steps, a minute on two CPU cores
jvdm plan lingen --on h200                          0.08 GB of a device
jvdm generate "a large red ball rolls to the left" --weights work/lingen/weights

The nano model with LinGen's blocks (arXiv:2412.09856; theirs has 4B parameters and makes 68 s of
512 pixels): in every layer a bidirectional Mamba2 reads all tokens, in an order that changes from
layer to layer, after an overview of them, and attention stays within windows that shift. What it
reaches beside full attention: `configs/systems/lingen.py`.
"""

from jvdm.attention import TemporalSwin
from jvdm.configs import nano
from jvdm.experiment import Experiment
from jvdm.models.state_space import Mamba2

# 3 x 4 x 4 tokens: windows of a quarter of a frame, and an overview of 8 boxes.
WINDOW = TemporalSwin((4, 2, 2))
SCAN = Mamba2(state=32, chunk=16, review=(2, 2, 2))


def config() -> Experiment:
    """Returns a run of 40 steps over a small ring of clips."""
    return nano.of_network("lingen", policy=WINDOW, scan=SCAN)
