"""A video model of your own videos: `videos/*.mp4`, each beside a `.txt` with its caption.

jvdm train configs/my_videos.py --workdir work/mine --source.frames.clips.folder videos
jvdm plan my_videos --on h200                       10.56 GB of a device, where videos/ is

Captions are read with the vocabulary of the shipped model; other words count as unknown.
Videos that cannot be used are listed in `work/mine/quarantine.jsonl`.
"""

import dataclasses
from pathlib import Path

from jvdm.configs import tiny_t2v, vae
from jvdm.data.host import HostSource
from jvdm.data.video_folder import VideoFolder
from jvdm.experiment import Experiment
from jvdm.text.tokenizer import WordTokenizer
from jvdm.training.host_latents import HostLatents
from jvdm.training.optimizer import Optimizer
from jvdm.training.previews import SamplePreview
from jvdm.weights.folder import EMBEDDED

BATCH_SIZE = 64
WEIGHTS = EMBEDDED / "tiny_t2v"
"""Its autoencoder makes the latents and goes along with the weights."""


def config() -> Experiment:
    """Returns the recipe of the shipped model on a folder of videos."""
    shipped = tiny_t2v.config()
    packaging = dataclasses.replace(shipped.package, parts=(str(WEIGHTS),))
    size = {name: getattr(vae.WORLD, name) for name in ("height", "width", "num_frames", "fps")}
    clips = VideoFolder(Path("videos"), WordTokenizer(), **size)
    return Experiment(
        name="my_videos",
        objective=shipped.objective,
        source=HostLatents(HostSource(clips, BATCH_SIZE), vae.VAE, WEIGHTS),
        optimizer=Optimizer(learning_rate=1e-3),
        batch_size=BATCH_SIZE,
        num_steps=12_000,
        checkpoint_every=1_000,
        sample_every=1_000,
        package=packaging,
        preview=SamplePreview(packaging),
    )
