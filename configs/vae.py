"""The video autoencoder of the shipped model: strides 4 x 8 x 8, 16 channels.

jvdm train configs/vae.py --workdir work/vae
jvdm plan vae --on h200                             12.80 GB of a device
Two NVIDIA H200: 205 s after 73 s of preparation, 34.2 ms a step, 1,873 clips/s of 17 frames.
A step of 64 alone on one H200, without rendering: 44.3 ms, 33.6 % MFU; 56.5 without `norm_silu`.
Held-out PSNR on 256 clips of 33 frames: 37.4 dB, objects 32.8 dB, first frame 40.3 dB; with the
decoder of `configs/vae_decoder.py`, which is shipped, 38.9, 35.0 and 42.0 dB.
"""

from jvdm.experiment import Experiment
from jvdm.samplers import DPMSolverPP2M, ShiftedLevels, TwoScales
from jvdm.system import Sampling
from jvdm.training.optimizer import Optimizer
from jvdm.training.reconstruction import Reconstruction, ReconstructionPreview
from jvdm.training.world_source import WorldClips
from jvdm.vae.video_vae import VideoVAE
from jvdm.weights.folder import Defaults
from jvdm.weights.package import Packaging
from jvdm.world.scene import World

WORLD = World()
CLIP_FRAMES = 17  # half the length that is generated: nothing is lost beyond it
VAE = VideoVAE()
DEFAULTS = Defaults(
    height=WORLD.height,
    width=WORLD.width,
    num_frames=WORLD.num_frames,
    fps=WORLD.fps,
)
SAMPLING = Sampling(
    ShiftedLevels(16, shift=8.0), solver=DPMSolverPP2M(), guidance=TwoScales(2.4, 2.8, 0.9)
)
"""How the video model of these latents is sampled: chosen by measurement, see its model card."""


def config() -> Experiment:
    """Returns the experiment that made the shipped autoencoder."""
    return Experiment(
        name="vae",
        objective=Reconstruction(VAE, WORLD),
        source=WorldClips(WORLD, split="vae", num_frames=CLIP_FRAMES),
        optimizer=Optimizer(kind="adamw", learning_rate=1.2e-3, warmup_steps=100),
        batch_size=64,
        num_steps=6_000,
        ema_decay=0.999,
        checkpoint_every=2_000,
        sample_every=2_000,
        package=Packaging("tiny_t2v", DEFAULTS, quantize="int8"),
        preview=ReconstructionPreview(),
    )
