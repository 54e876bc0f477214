"""The video model that ships with jvdm: sentences to 33 frames of 128 x 128 pixels.

jvdm train configs/tiny_t2v.py --workdir work/tiny_t2v
It reads work/vae/weights and work/reader/weights (configs/vae.py, configs/reader.py).
The shipped weights: 4,800 steps on two NVIDIA H200 (492 s after 99 s of preparation) with levels
nearer to data, `Synchronous()` for `TOGETHER`. This recipe on one H200, two runs of 2,900 and 1,150
steps: 144 to 149 ms a step of 256 clips, 1,714 to 1,784 clips/s, 26.3 to 27.3 % model FLOP
utilisation of 990 TFLOP/s. Numbers reached by the shipped weights: the README.
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
TOGETHER = Synchronous(mean=0.8, std=1.3)
ROWS = Mixture(
    samplers=(TOGETHER, Independent(), LagRows(), CleanPrefix(TOGETHER)),
    weights=(0.45, 0.1, 0.15, 0.3),
)


def config() -> Experiment:
    """Returns the experiment that made the shipped weights."""
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
        source=WorldLatents(world=WORLD, vae=VAE, vae_weights=VAE_WEIGHTS, pool=8192),
        optimizer=Optimizer(learning_rate=1e-3),
        batch_size=256,
        num_steps=9_000,
        checkpoint_every=2_000,
        sample_every=2_000,
        package=packaging,
        preview=SamplePreview(packaging),
    )
