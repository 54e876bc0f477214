"""Manifests of older layouts, brought to the present one."""

from collections.abc import Mapping
from typing import Any

# Version 1 knew one class for each component.
_CLASSES = {
    "dit": "jvdm.models.video_dit:VideoDiT",
    "text": "jvdm.text.words:WordEncoder",
    "vae": "jvdm.vae.video_vae:VideoVAE",
    "reader": "jvdm.evaluation.reader:Reader",
}
_SIZES = ("height", "width", "num_frames", "fps")


def from_version_1(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the manifest of version 2 that says the same.

    Raises:
        KeyError: If a field is missing.
    """
    content = dict(content)
    words, defaults = content.pop("vocabulary"), content["defaults"]
    components = {
        "model" if name == "dit" else name: {"class": _CLASSES.get(name, name), **fields}
        for name, fields in content["components"].items()
    }
    if "text" in components:
        text = components["text"]
        tokenizer = {"class": "jvdm.text.tokenizer:WordTokenizer", "vocabulary": words}
        text["tokenizer"] = {**tokenizer, "max_tokens": text.pop("max_tokens")}
        del text["vocabulary"]
    if "model" in components:
        content["files"] = {"model": "dit.safetensors#dit", "text": "dit.safetensors#text"}
    content["rules"] = {
        "process": {"recipe": "jvdm.samplers.process:rectified_flow", "arguments": {}},
        "prediction": "velocity",
        "sampling": {
            "class": "jvdm.system:Sampling",
            "levels": {
                "class": "jvdm.samplers.rules:ShiftedLevels",
                "num_steps": defaults["num_inference_steps"],
                "shift": defaults["shift"],
            },
            "guidance": {
                "class": "jvdm.samplers.guidance:ClassifierFree",
                "scale": defaults["guidance_scale"],
            },
        },
    }
    sizes = {name: defaults[name] for name in _SIZES}
    return {**content, "components": components, "defaults": sizes, "version": 2}
