"""Next-Frame Diffusion's model, small: frames one after the other, under actions.

jvdm train configs/nfd.py --workdir work/nfd        40 steps, a minute on two CPU cores
jvdm plan nfd --on h200                             0.05 GB of a device
jvdm stream "a large red ball rests" --weights work/nfd/weights --system nfd --at 1s "act push left"

The nano model with frame-causal attention and the `actions` port, on clips of the world that are
played: one object is pushed and stopped, the camera turned (`jvdm.world.actions`),
each frame with a noise level of its own (arXiv:2506.01380; theirs has 32 frames of Minecraft and an
autoencoder of single frames; here four frames share a latent and an action). What 14,000 steps
reach: `configs/systems/nfd.py`.
"""

import dataclasses
from typing import Any

from jvdm.attention import FrameCausal
from jvdm.configs import nano
from jvdm.experiment import Experiment
from jvdm.samplers.timesteps import Independent
from jvdm.training.world_source import PlayedLatents
from jvdm.world.actions import ACTIONS


def config() -> Experiment:
    """Returns a run of 40 steps over a small ring of played clips."""
    model = {"policy": FrameCausal(), "ports": ("text", "actions"), "actions": ACTIONS}
    base: Any = nano.of_network("nfd", **model)
    return dataclasses.replace(
        base,
        objective=dataclasses.replace(base.objective, rows=Independent()),
        source=PlayedLatents(nano.WORLD, nano.VAE, nano.VAE_WEIGHTS, pool=256, fresh=4),
    )
