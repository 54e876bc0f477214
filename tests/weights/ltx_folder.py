"""Folders of Diffusers with a small LTX-Video in them, of stored references and drawn weights."""

import json
from pathlib import Path

import numpy as np

from jvdm.files import write_text
from jvdm.weights.diffusers import write_tensors
from tests.parity.references import Reference, inputs
from tests.text.pieces import write_tokenizer

PROMPTS = ["a red ball rolls", "a blue ball rests"]
(NOISE,) = inputs((2, 3, 2, 4, 8), seed=5)
(PICTURE,) = inputs((32, 64, 3), seed=6)
PICTURE = np.clip(127.5 * (1 + PICTURE / 2), 0, 255).astype(np.uint8)
EARLIER, LATER = "LTXPipeline", "LTXConditionPipeline"
VERSIONS = {
    "0_9_0": (EARLIER, "ltx_vae_0_9_0"),
    "0_9_1": (EARLIER, "ltx_vae_0_9_1"),
    "0_9_5": (LATER, "ltx_vae_0_9_5"),
}
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "base_image_seq_len": 1024,
    "base_shift": 0.95,
    "max_image_seq_len": 4096,
    "max_shift": 2.05,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": 0.1,
    "use_dynamic_shifting": True,
}
PLAIN = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0}
STATISTICS = {
    "latents_mean": np.array([0.1, -0.2, 0.3, 0.0, 0.0, 0.5, -0.5, 0.2], np.float32),
    "latents_std": np.array([1.5, 0.7, 2.0, 1.0, 0.9, 1.1, 0.8, 1.2], np.float32),
}
CLASSES = {
    "text_encoder": "T5EncoderModel",
    "transformer": "LTXVideoTransformer3DModel",
    "vae": "AutoencoderKLLTXVideo",
}


def write_ltx(folder: Path, version: str = "0_9_0") -> Path:
    """Writes the folder of a version and returns it."""

    def write(name: str, content) -> None:
        write_text(folder / name, json.dumps(content))

    pipeline, vae = VERSIONS[version]
    write("model_index.json", {"_class_name": pipeline, "_diffusers_version": "0.42.1"})
    write("scheduler/scheduler_config.json", SCHEDULER if pipeline == EARLIER else PLAIN)
    write_tokenizer(folder / "tokenizer/tokenizer.json")
    parts = {"transformer": "ltx_transformer", "text_encoder": "t5", "vae": vae}
    for place, name in parts.items():
        reference = Reference(name)
        others = STATISTICS if place == "vae" else {}
        write(f"{place}/config.json", {"_class_name": CLASSES[place], **reference.config})
        stem = "model" if place == "text_encoder" else "diffusion_pytorch_model"
        write_tensors(folder / place, {**reference.weights, **others}, stem)
    return folder
