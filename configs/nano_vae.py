"""The autoencoder of the nano model, 64 x 64 pixels and 9 frames.

jvdm train configs/nano_vae.py --workdir work/nano_vae
jvdm plan nano_vae --on h200                        0.12 GB of a device
Ten cores of a server CPU: 4 minutes.
"""

from jvdm.experiment import Experiment
from jvdm.samplers import ClassifierFree, ShiftedLevels
from jvdm.system import Sampling
from jvdm.training.optimizer import Optimizer
from jvdm.training.reconstruction import Reconstruction, ReconstructionPreview
from jvdm.training.world_source import WorldClips
from jvdm.vae.video_vae import VideoVAE
from jvdm.weights.folder import Defaults
from jvdm.weights.package import Packaging
from jvdm.world.scene import World

WORLD = World(height=64, width=64, num_frames=9, fps=6.0, substeps=12)
VAE = VideoVAE(
    latent_channels=8,
    widths=(24, 48),
    encoder_blocks=(1, 1, 1, 1),
    decoder_blocks=(1, 1, 1, 1),
    dtype="float32",
)
DEFAULTS = Defaults(
    height=WORLD.height,
    width=WORLD.width,
    num_frames=WORLD.num_frames,
    fps=WORLD.fps,
)
SAMPLING = Sampling(ShiftedLevels(8, shift=2.0), guidance=ClassifierFree(3.0))
"""How the video model of these latents is sampled."""


def config() -> Experiment:
    """Returns the experiment that made the nano model's autoencoder."""
    return Experiment(
        name="nano_vae",
        objective=Reconstruction(VAE, WORLD, held_out=64),
        source=WorldClips(WORLD, split="vae"),
        optimizer=Optimizer(kind="adamw", learning_rate=3e-3, warmup_steps=50),
        batch_size=16,
        num_steps=1_100,
        ema_decay=0.995,
        checkpoint_every=1_000,
        package=Packaging("nano", DEFAULTS),
        preview=ReconstructionPreview(),
    )
