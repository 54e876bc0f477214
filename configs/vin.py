"""A Video Interface Network, small: chunks of three latent frames that read sixteen tokens.

jvdm train configs/vin.py --workdir work/vin        40 steps, a minute on two CPU cores
jvdm plan vin --on h200                             0.17 GB of a device
jvdm generate "a large red ball rests" --weights work/vin/weights --system vin --num-frames 65

The nano network with an interface (`jvdm.models.interface`, arXiv:2503.17539; theirs has chunks of
20 latent frames and 512 tokens), on clips of 33 frames: four chunks that share a frame. What it
reaches: `configs/systems/vin.py`.
"""

from jvdm.configs import nano
from jvdm.experiment import Experiment
from jvdm.models.interface import InterfaceDiT


def config() -> Experiment:
    """Returns a run of 40 steps over a small ring of clips."""
    return nano.of_films("vin", 33, InterfaceDiT)
