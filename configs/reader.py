"""The reader that judges clips: colours, shapes, sizes, verbs, speeds and camera.

jvdm train configs/reader.py --workdir work/reader

The autoencoder comes first: a sixteenth of the clips are its reconstructions.
Without one: `--source.vae-weights None`.
"""

from pathlib import Path

from jvdm.configs import vae
from jvdm.data.world import World
from jvdm.experiment import Experiment
from jvdm.models.reader import Reader
from jvdm.training.optimizer import Optimizer
from jvdm.training.packaging import Packaging
from jvdm.training.reader import ClipReading, ReaderClips

WORLD = World()
VAE_WEIGHTS = Path("work/vae/weights")


def config() -> Experiment:
    """Returns the experiment that made the shipped reader."""
    return Experiment(
        name="reader",
        objective=ClipReading(Reader(), WORLD, Packaging("tiny_t2v", vae.DEFAULTS)),
        source=ReaderClips(WORLD, vae.VAE, VAE_WEIGHTS),
        optimizer=Optimizer(kind="adamw", learning_rate=1.5e-3, warmup_steps=100),
        batch_size=256,
        num_steps=1_600,
        ema_decay=0.998,
        checkpoint_every=800,
        log_every=50,
    )
