"""The video model that ships with jvdm: sentences to 33 frames of 128 x 128 pixels.

jvdm train configs/tiny_t2v.py --workdir work/tiny_t2v
jvdm plan tiny_t2v --on h200                        78.36 GB of a device
It reads work/vae/weights and work/reader/weights (configs/vae.py, configs/reader.py).
The shipped weights saw 9.0 million draws: the first edition (4,800 steps of 256, levels nearer to
data), then from it 15,248 steps of 512 with these rows in two runs on four NVIDIA H200, 83.3 ms a
step, 6,150 clips/s, 23.8 % model FLOP utilisation of 990 TFLOP/s, 58 s of preparation; of a rate
that falls over the second half. One H200 takes 80 ms for 128 clips (24.7 %), and 144 to 149 ms for
256 (26.3 to 27.3 %). What they reach: docs/results.md; what was compared: the model card.
"""

from pathlib import Path

from jvdm.configs import vae
from jvdm.experiment import Experiment
from jvdm.models import VideoDiT
from jvdm.samplers.timesteps import CleanPrefix, Independent, LagRows, Mixture, Synchronous
from jvdm.system import System
from jvdm.text.words import WordEncoder
from jvdm.training.flow_matching import FlowMatching
from jvdm.training.optimizer import Optimizer
from jvdm.training.previews import SamplePreview
from jvdm.training.world_source import WorldLatents
from jvdm.weights.package import Packaging

VAE, WORLD = vae.VAE, vae.WORLD
VAE_WEIGHTS = Path("work/vae/weights")
READER_WEIGHTS = Path("work/reader/weights")

# Nearer to noise than a single image wants: there it is decided which objects there are.
TOGETHER = Synchronous(mean=2.6, std=1.5)
ROWS = Mixture(
    samplers=(TOGETHER, Independent(), LagRows(), CleanPrefix(TOGETHER)),
    weights=(0.45, 0.1, 0.15, 0.3),
)


def config() -> Experiment:
    """Returns one run that sees as many clips as the shipped weights did."""
    packaging = Packaging(
        family="tiny_t2v",
        defaults=vae.DEFAULTS,
        parts=(str(VAE_WEIGHTS), str(READER_WEIGHTS)),
        quantize="int8",
    )
    return Experiment(
        name="tiny_t2v",
        objective=FlowMatching(
            System(
                text=WordEncoder(),
                model=VideoDiT(width=512, depth=10, unroll=10, remat="none"),
                vae=VAE,
                sampling=vae.SAMPLING,
            ),
            rows=ROWS,
        ),
        source=WorldLatents(world=WORLD, vae=VAE, vae_weights=VAE_WEIGHTS, fresh=64),
        optimizer=Optimizer(learning_rate=1e-3),
        batch_size=512,
        num_steps=18_000,
        checkpoint_every=2_000,
        sample_every=2_000,
        package=packaging,
        preview=SamplePreview(packaging),
    )
