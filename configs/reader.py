"""The reader that judges clips: colours, shapes, sizes, verbs, speeds and camera.

jvdm train configs/reader.py --workdir work/reader
jvdm plan reader --on h200                          4.05 GB of a device
One NVIDIA H200: 50 s after 66 s of preparation, 7,700 clips/s.
Accuracy on 512 held-out true clips: colours .988, shape .988, size 1.0, verb .968, speed .979,
camera 1.0.

The autoencoder comes first: an eighth of the clips are its reconstructions.
Without one: `--source.vae-weights None`.
"""

from pathlib import Path

from jvdm.configs import vae
from jvdm.evaluation.reader import Reader
from jvdm.evaluation.reader_training import ClipReading, ReaderClips, ReadingPreview
from jvdm.experiment import Experiment
from jvdm.training.optimizer import Optimizer
from jvdm.weights.package import Packaging
from jvdm.world.scene import World

WORLD = World()
VAE_WEIGHTS = Path("work/vae/weights")


def config() -> Experiment:
    """Returns the experiment that made the shipped reader."""
    return Experiment(
        name="reader",
        objective=ClipReading(Reader(), WORLD),
        source=ReaderClips(WORLD, vae.VAE, VAE_WEIGHTS, reconstructed=0.125),
        optimizer=Optimizer(kind="adamw", learning_rate=1e-3, warmup_steps=100, decay_fraction=0.5),
        batch_size=256,
        num_steps=1_500,
        ema_decay=0.998,
        checkpoint_every=500,
        log_every=50,
        package=Packaging("tiny_t2v", vae.DEFAULTS),
        preview=ReadingPreview(),
    )
