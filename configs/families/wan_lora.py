"""Low-rank changes (LoRA) of Wan, of your own videos: each `videos/*.mp4` beside a `.txt`.

jvdm train configs/families/wan_lora.py --workdir work/lora --objective.base FOLDER
jvdm generate "a prompt" --weights FOLDER --lora work/lora/weights/lora.safetensors
jvdm plan families/wan_lora --on h200     6.65 GB of a device, where Wan2.1-T2V-1.3B-Diffusers is

FOLDER is one of Diffusers: Wan2.1-T2V-1.3B, 14B, Wan2.2-TI2V-5B or T2V-A14B (both networks are
trained then, and both are in the file). Clips are encoded once, before the first step.
`--objective.rank 16 --objective.targets attn1.to_q attn1.to_k attn1.to_v` changes less.

At rank 32 (planned by `jax.eval_shape`; nothing of this size was trained here) factors, average and
moments take 0.70 GB for the 1.3B network, beside 2.85 GB of frozen weights; 1.29 GB beside 10.0 GB
for the 5B of 2.2, 2.45 GB beside 28.6 GB for the 14B of 2.1. A checkpoint holds the first alone.
"""

from pathlib import Path

from jvdm.data.video_folder import VideoFolder
from jvdm.experiment import Experiment
from jvdm.training.encoded_clips import Captions, EncodedClips
from jvdm.training.low_rank import LowRankMatching
from jvdm.training.optimizer import Optimizer

PIPELINES = ()  # no folder of Diffusers is read here


def config() -> Experiment:
    """Returns a run of 2,000 clips of 33 frames of 480 x 832 pixels, one a step."""
    clips = VideoFolder(Path("videos"), Captions(), height=480, width=832, num_frames=33, fps=16.0)
    return Experiment(
        name="wan_lora",
        objective=LowRankMatching(),
        source=EncodedClips(clips, batch_size=1),
        optimizer=Optimizer(kind="adamw", learning_rate=1e-4, warmup_steps=50, weight_decay=0.0),
        batch_size=1,
        num_steps=2000,
        ema_decay=0.99,
        log_every=10,
        checkpoint_every=250,
    )
