"""A video model of a megabyte, for tests and for a first look at training.

jvdm train configs/nano.py --workdir work/nano      40 steps, a minute on two CPU cores
jvdm plan nano --on h200                            0.05 GB of a device
The nano weights in the package: --num-steps 2500 --source.pool 4096 --source.fresh 8,
3 minutes on ten cores of a server CPU.
"""

import dataclasses
from pathlib import Path
from typing import Any

from jvdm.configs import nano_vae
from jvdm.experiment import Experiment
from jvdm.models import VideoDiT
from jvdm.system import System
from jvdm.text.words import WordEncoder
from jvdm.training.distillation import Distillation
from jvdm.training.flow_matching import FlowMatching
from jvdm.training.optimizer import Optimizer
from jvdm.training.previews import SamplePreview
from jvdm.training.world_source import WorldLatents
from jvdm.weights.folder import EMBEDDED
from jvdm.weights.package import Packaging

VAE, WORLD = nano_vae.VAE, nano_vae.WORLD
VAE_WEIGHTS = EMBEDDED / "nano"


def going_on(learning_rate: float) -> Optimizer:
    """Returns the optimizer of short runs from trained weights."""
    return Optimizer("adamw", learning_rate, warmup_steps=10, weight_decay=0.0)


def of_network(
    name: str,
    network: type[VideoDiT] = VideoDiT,
    *,
    learning_rate: float | None = None,
    **fields: Any,
) -> Experiment:
    """Returns nano's run of another network of its sizes.

    Args:
        name: Of the experiment, and of the family of its weights.
        network: Class of the network.
        learning_rate: Of a run that goes on from the shipped weights; None is a run from noise.
        fields: What else the network is made with.
    """
    base: Any = config()
    like = base.objective.system.model
    sizes = ("width", "depth", "latent_channels", "head_dim", "rotary_axes", "dtype")
    model = network(**{size: getattr(like, size) for size in sizes}, **fields)
    system = dataclasses.replace(base.objective.system, model=model)
    if learning_rate is not None:
        rules = {"optimizer": going_on(learning_rate), "start_from": VAE_WEIGHTS}
        base = dataclasses.replace(base, **rules)
    packaging = dataclasses.replace(base.package, family=name)
    return dataclasses.replace(
        base,
        name=name,
        objective=dataclasses.replace(base.objective, system=system),
        package=packaging,
        preview=dataclasses.replace(base.preview, package=packaging),
    )


def of_films(name: str, num_frames: int, *given: Any, **fields: Any) -> Experiment:
    """Returns a run of `of_network` on clips of so many pixel frames."""
    base: Any = of_network(name, *given, **fields)
    world = dataclasses.replace(WORLD, num_frames=num_frames)
    defaults = dataclasses.replace(base.package.defaults, num_frames=num_frames)
    packaging = dataclasses.replace(base.package, defaults=defaults)
    return dataclasses.replace(
        base,
        source=WorldLatents(world, VAE, VAE_WEIGHTS, pool=256, fresh=2),
        package=packaging,
        preview=dataclasses.replace(base.preview, package=packaging),
    )


def of_stream(
    base: Experiment, steps: int, teacher: Path, learning_rate: float, **rules: Any
) -> Experiment:
    """Returns a run that distils a stream from weights of `base`, its teacher, and on from them.

    Args:
        base: What made the teacher.
        steps: Those of the student, at the levels of the teacher's sampling.
        teacher: Weights folder.
        learning_rate: Of the run.
        rules: Of the `Distillation`.
    """
    system: Any = base.objective.system  # pyright: ignore[reportAttributeAccessIssue]
    levels = dataclasses.replace(system.sampling.levels, num_steps=steps)()
    edges = tuple(levels.tolist())
    objective = Distillation(system, str(teacher), edges, source="stream", **rules)
    optimizer = going_on(learning_rate)
    return dataclasses.replace(base, objective=objective, optimizer=optimizer, start_from=teacher)


def config() -> Experiment:
    """Returns a run of 40 steps over a small ring of clips."""
    packaging = Packaging("nano", nano_vae.DEFAULTS, parts=(str(VAE_WEIGHTS),))
    return Experiment(
        name="nano",
        objective=FlowMatching(
            System(
                text=WordEncoder(width=64, depth=2, head_dim=32, dtype="float32"),
                model=VideoDiT(
                    width=96,
                    depth=3,
                    latent_channels=VAE.latent_channels,
                    head_dim=32,
                    rotary_axes=(8, 12, 12),
                    dtype="float32",
                ),
                vae=VAE,
                sampling=nano_vae.SAMPLING,
            )
        ),
        source=WorldLatents(WORLD, VAE, VAE_WEIGHTS, pool=256, fresh=4),
        optimizer=Optimizer(learning_rate=2e-3, warmup_steps=10),
        batch_size=16,
        num_steps=40,
        ema_decay=0.995,
        log_every=10,
        checkpoint_every=20,
        package=packaging,
        preview=SamplePreview(packaging),
    )
