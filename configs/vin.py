"""A Video Interface Network, small: chunks of three latent frames that read sixteen tokens.

jvdm train configs/vin.py --workdir work/vin        40 steps, a minute on two CPU cores
jvdm plan vin --on h200                             0.02 GB of a device
jvdm generate "a large red ball rests" --weights work/vin/weights --system vin --num-frames 65

The nano network with an interface (`jvdm.models.interface`, arXiv:2503.17539; theirs has chunks of
20 latent frames and 512 tokens), on clips of 33 frames: four chunks that share a frame. What it
reaches: `configs/systems/vin.py`.
"""

import dataclasses

from jvdm.configs import nano
from jvdm.experiment import Experiment
from jvdm.models.interface import InterfaceDiT
from jvdm.training.world_source import WorldLatents

WORLD = dataclasses.replace(nano.WORLD, num_frames=33)


def config() -> Experiment:
    """Returns a run of 40 steps over a small ring of clips."""
    base = nano.config()
    model = base.objective.system.model
    system = dataclasses.replace(
        base.objective.system,
        model=InterfaceDiT(
            width=model.width,
            depth=model.depth,
            latent_channels=model.latent_channels,
            head_dim=model.head_dim,
            rotary_axes=model.rotary_axes,
            dtype=model.dtype,
        ),
    )
    defaults = dataclasses.replace(base.package.defaults, num_frames=WORLD.num_frames)
    packaging = dataclasses.replace(base.package, family="vin", defaults=defaults)
    return dataclasses.replace(
        base,
        name="vin",
        objective=dataclasses.replace(base.objective, system=system),
        source=WorldLatents(WORLD, nano.VAE, nano.VAE_WEIGHTS, pool=256, fresh=2),
        package=packaging,
        preview=dataclasses.replace(base.preview, package=packaging),
    )
