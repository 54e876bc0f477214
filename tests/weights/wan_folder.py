"""A folder of Diffusers with a small Wan in it, of the stored references and drawn weights."""

import importlib
import json
from pathlib import Path

import numpy as np

from jvdm.files import write_text
from jvdm.weights.diffusers import write_tensors
from tests.parity.references import Reference, drawn, inputs
from tests.text.pieces import write_tokenizer

wan = importlib.import_module("jvdm.configs.families.wan")
PARTS = {"transformer": "wan_transformer", "text_encoder": "umt5", "vae": "wan_vae"}
PROMPTS = ["a red ball rolls", "a blue ball rests & rolls"]
(NOISE,) = inputs((2, 3, 4, 8, 4), seed=5)
PICTURE = np.random.RandomState(6).randint(0, 256, (32, 64, 3)).astype(np.uint8)
INDEX = {
    "_class_name": "WanPipeline",
    "_diffusers_version": "0.42.1",
    "boundary_ratio": None,
    "expand_timesteps": False,
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "transformer_2": [None, None],
    "vae": ["diffusers", "AutoencoderKLWan"],
}
SCHEDULER = {
    "_class_name": "UniPCMultistepScheduler",
    "flow_shift": 3.0,
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "solver_order": 2,
    "solver_type": "bh2",
    "use_flow_sigmas": True,
}


PROCESSOR = {
    "crop_size": {"height": 28, "width": 28},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "CLIPImageProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 28},
}


def pictures_of(*shapes) -> list[np.ndarray]:
    """Returns pictures `[H, W, 3]` of a seed, a height and a width each, the same anywhere."""
    drawn = (np.random.RandomState(seed).rand(height, width, 3) for seed, height, width in shapes)
    return [(256 * one).astype(np.uint8) for one in drawn]


VERSIONS = {
    "2.1": {},
    "ti2v": {"expand_timesteps": True},
    "ti2v of a picture": {
        "_class_name": "WanImageToVideoPipeline",
        "expand_timesteps": True,
    },
    "picture": {
        "_class_name": "WanImageToVideoPipeline",
        "image_encoder": ["transformers", "CLIPVisionModel"],
        "image_processor": ["transformers", "CLIPImageProcessor"],
    },
    "two pictures": {
        "_class_name": "WanImageToVideoPipeline",
        "image_encoder": ["transformers", "CLIPVisionModel"],
        "image_processor": ["transformers", "CLIPImageProcessor"],
    },
    "a14b": {
        "boundary_ratio": 0.875,
        "transformer_2": ["diffusers", "WanTransformer3DModel"],
    },
    "a14b of a picture": {
        "_class_name": "WanImageToVideoPipeline",
        "boundary_ratio": 0.9,
        "transformer_2": ["diffusers", "WanTransformer3DModel"],
    },
}
"""What `model_index.json` says otherwise in each kind of folder."""


SEEING = {"picture": "wan_seeing_transformer", "two pictures": "wan_between_transformer"}


def parts(version: str) -> dict[str, str]:
    """Returns the stored references that a folder is made of."""
    if version in SEEING:
        return PARTS | {"transformer": SEEING[version], "image_encoder": "clip_vision"}
    if version.startswith("a14b"):
        name = "wan_told_transformer" if version.endswith("picture") else "wan_transformer"
        return PARTS | {"transformer": name, "transformer_2": name}
    return PARTS | ({"vae": "wan_vae_2_2"} if version.startswith("ti2v") else {})


def sizes_of(version: str) -> dict[str, int]:
    """Returns the sizes of the video whose noise is `NOISE`."""
    side = Reference(parts(version)["vae"]).config["scale_factor_spatial"]
    return {"height": 4 * side, "width": 8 * side, "num_frames": 5}


def write_wan(folder: Path, version: str = "2.1", **shards) -> Path:
    """Writes the folder and returns it; `shards` are bytes of a file by component."""

    def write(name: str, content) -> None:
        write_text(folder / name, json.dumps(content))

    write("model_index.json", INDEX | VERSIONS[version])
    shift = {"flow_shift": 16.0} if version == "two pictures" else {}
    write("scheduler/scheduler_config.json", SCHEDULER | shift)
    if version in SEEING:
        write("image_processor/preprocessor_config.json", PROCESSOR)
    write_tokenizer(folder / "tokenizer/tokenizer.json")
    for place, name in parts(version).items():
        reference = Reference(name)
        kind = (INDEX | VERSIONS[version])[place][1]
        write(f"{place}/config.json", {"_class_name": kind, **reference.config})
        stem = "model" if place.endswith("_encoder") else "diffusion_pytorch_model"
        bytes_of = {"shard_bytes": shards[place]} if place in shards else {}
        seed = int(place == "transformer_2")
        write_tensors(folder / place, drawn(reference.shapes, seed), stem, **bytes_of)
    return folder
