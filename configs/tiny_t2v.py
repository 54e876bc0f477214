"""The video model that ships with jvdm: sentences to 33 frames of 128 x 128 pixels.

jvdm train configs/tiny_t2v.py --workdir work/tiny_t2v
jvdm plan tiny_t2v --on h200                        78.36 GB of a device
It reads work/vae/weights and work/reader/weights (configs/vae.py, configs/reader.py).
The shipped weights saw 11.5 million draws: 9.0 million of the first two editions (levels nearer to
data; four NVIDIA H200, 83.3 ms a step of 512, 6,150 clips/s, 23.8 % model FLOP utilisation of 990
TFLOP/s, 58 s of preparation), 4,700 steps of 256 of `configs/tiny_t2v_layout.py`, which teach where
told things are, and from there 5,100 steps of 256 with these rows, at a rate of 8e-4 that falls
over the last 65 %, EMA .999: two H200, 90.5 ms a step, 2,831 clips/s, 21.9 %. One H200 takes 80 ms
for 128 clips (24.7 %), and 144 to 149 ms for 256 (26.3 to 27.3 %), before norms were one pass each
way (docs/results.md). What they reach: docs/results.md; what was compared: the model card.
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

# Nearer to noise than a single image wants: there it is decided which objects there are, and where.
TOGETHER = Synchronous(mean=3.0, std=2.0)
ROWS = Mixture(
    samplers=(TOGETHER, Independent(), LagRows(), CleanPrefix(TOGETHER)),
    weights=(0.6, 0.07, 0.11, 0.22),
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
                model=VideoDiT(width=512, depth=10, position_waves=4, unroll=10, remat="none"),
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
