"""Low-rank changes (LoRA) of LTX-Video, of your own videos: each `videos/*.mp4` beside a `.txt`.

jvdm train configs/families/ltx_lora.py --workdir work/lora --objective.base FOLDER
jvdm generate "a prompt" --weights FOLDER --lora work/lora/weights/lora.safetensors
jvdm plan families/ltx_lora --on h200     5.57 GB of a device, where LTX-Video (2B) is

FOLDER is one of Diffusers. Clips are encoded once, before the first step; the network is told the
frame rate of the model, 25 a second. Nothing of the published size was trained here: the weights of
the 2B network take 3.86 GB in bfloat16, those of the 13B network 26.1 (`jax.eval_shape`).
"""

import dataclasses
from pathlib import Path

from jvdm.configs.families import wan_lora  # pyright: ignore[reportMissingImports]
from jvdm.data.video_folder import VideoFolder
from jvdm.experiment import Experiment
from jvdm.training.encoded_clips import Captions, EncodedClips
from jvdm.training.low_rank import LowRankMatching

PIPELINES = ()  # no folder of Diffusers is read here
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")


def config() -> Experiment:
    """Returns the run of Wan with 2,000 clips of 49 frames of 512 x 768 pixels, one a step."""
    clips = VideoFolder(Path("videos"), Captions(), height=512, width=768, num_frames=49, fps=25.0)
    return dataclasses.replace(
        wan_lora.config(),
        name="ltx_lora",
        objective=LowRankMatching(base="LTX-Video", targets=TARGETS),
        source=EncodedClips(clips, batch_size=1),
    )
