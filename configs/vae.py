"""The video autoencoder of the shipped model: 4 x 8 x 8 strides, 16 channels.

jvdm train configs/vae.py --workdir work/vae
"""

from jvdm.data.world import World
from jvdm.experiment import Experiment
from jvdm.training.optimizer import Optimizer
from jvdm.training.packaging import Packaging
from jvdm.training.reconstruction import Reconstruction
from jvdm.training.world_source import WorldClips
from jvdm.vae.video_vae import VideoVAE
from jvdm.weights.folder import Defaults

WORLD = World()
VAE = VideoVAE()
DEFAULTS = Defaults(
    height=WORLD.height,
    width=WORLD.width,
    num_frames=WORLD.num_frames,
    fps=WORLD.fps,
    num_inference_steps=16,
    guidance_scale=4.0,
    shift=3.0,
)


def config() -> Experiment:
    """Returns the experiment that made the shipped autoencoder."""
    return Experiment(
        name="vae",
        objective=Reconstruction(VAE, WORLD, Packaging("tiny_t2v", DEFAULTS)),
        source=WorldClips(WORLD, split="vae", num_frames=17),
        optimizer=Optimizer(kind="adamw", learning_rate=1.2e-3, warmup_steps=100),
        batch_size=64,
        num_steps=8_000,
        ema_decay=0.999,
        checkpoint_every=2_000,
        sample_every=2_000,
    )
