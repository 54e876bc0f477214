"""ART.V's model, small: a network of single frames that is shown the two before and the first.

jvdm train configs/art_v.py --workdir work/art_v    40 steps, a minute on two CPU cores
jvdm plan art_v --on h200                           0.02 GB of a device
jvdm stream "a large red ball rests" --weights work/art_v/weights --system art_v --duration 10s

The nano network without attention between frames, with a mask of what it copies of the frame
before, on clips of 33 frames whose references are noised (arXiv:2311.18834; theirs starts from
Stable Diffusion 2.1; here four frames share a latent, and text and network start from noise). What
it reaches: `configs/systems/art_v.py`.
"""

import dataclasses

from jvdm.configs import nano
from jvdm.experiment import Experiment
from jvdm.models.next_frame import NextFrameDiT
from jvdm.training.next_frame import NextFrameMatching
from jvdm.training.world_source import WorldLatents

WORLD = dataclasses.replace(nano.WORLD, num_frames=33)


def config() -> Experiment:
    """Returns a run of 40 steps over a small ring of clips."""
    base = nano.config()
    model = base.objective.system.model
    system = dataclasses.replace(
        base.objective.system,
        model=NextFrameDiT(
            width=model.width,
            depth=model.depth,
            latent_channels=model.latent_channels,
            head_dim=model.head_dim,
            rotary_axes=model.rotary_axes,
            dtype=model.dtype,
        ),
    )
    defaults = dataclasses.replace(base.package.defaults, num_frames=WORLD.num_frames)
    packaging = dataclasses.replace(base.package, family="art_v", defaults=defaults)
    return dataclasses.replace(
        base,
        name="art_v",
        objective=NextFrameMatching(system),
        source=WorldLatents(WORLD, nano.VAE, nano.VAE_WEIGHTS, pool=256, fresh=2),
        package=packaging,
        preview=dataclasses.replace(base.preview, package=packaging),
    )
