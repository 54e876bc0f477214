"""Vision encoders of CLIP as Transformers publishes them: configurations, and names of arrays."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jvdm.errors import WeightsError
from jvdm.models.clip import ClipPictures, ClipVision
from jvdm.weights.convert import CONV_2D, LINEAR, Layout, Rule, Table, joined, linear

ROOT = "vision_model."  # published files have it before every name; newer ones do not
QUICK = {"gelu": False, "quick_gelu": True}
_FIX = "download the folder again"
_ROW = Layout(lambda x: x[None, None], lambda x: x[0, 0])


def vision_encoder(config: Mapping[str, Any], processor: Mapping[str, Any]) -> ClipVision:
    """Returns the network that `image_encoder/config.json` describes.

    Args:
        config: What the file says.
        processor: What `preprocessor_config.json` says of pictures.

    Raises:
        WeightsError: If it has an unknown activation, or pictures of another size.
    """
    if config["hidden_act"] not in QUICK:
        what = f"a vision encoder with the activation {config['hidden_act']}"
        raise WeightsError(what, f"known are {', '.join(QUICK)}", _FIX)
    pictures = _pictures(processor)
    made, side = pictures.crop or pictures.size, config["image_size"]
    if made != (side, side):
        what = f"the image processor makes pictures of {made}"
        raise WeightsError(what, f"the image encoder reads {side}x{side} pixels", _FIX)
    return ClipVision(
        pictures,
        width=config["hidden_size"],
        depth=config["num_hidden_layers"] - 1,
        heads=config["num_attention_heads"],
        mlp_width=config["intermediate_size"],
        patch=config["patch_size"],
        quick=QUICK[config["hidden_act"]],
        epsilon=config["layer_norm_eps"],
    )


def _pictures(config: Mapping[str, Any]) -> ClipPictures:
    """Returns what `preprocessor_config.json` says; a lone number is a side."""
    size, crop, usual = config["size"], config["crop_size"], ClipPictures()
    if isinstance(size, Mapping):
        size = size["shortest_edge"] if "shortest_edge" in size else (size["height"], size["width"])
    crop = (crop["height"], crop["width"]) if isinstance(crop, Mapping) else (crop, crop)
    scaled, centred = (config.get(f"do_{part}", True) for part in ("rescale", "normalize"))
    return ClipPictures(
        size if config.get("do_resize", True) else None,
        crop if config.get("do_center_crop", True) else None,
        config.get("rescale_factor", usual.factor) if scaled else 1.0,
        tuple(config["image_mean"]) if centred else (0.0,) * 3,
        tuple(config["image_std"]) if centred else (1.0,) * 3,
        config.get("resample", usual.resample),
    )


def vision_encoder_names(model: ClipVision) -> Table:
    """Returns what `CLIPVisionModel` calls the parameters of the network."""
    side, layer = model.patch, f"{ROOT}encoder.layers.{{}}"
    parts = {f"self_attn.{part}_proj": part for part in ("q", "k", "v", "out")}
    parts |= {"mlp.fc1": "up", "mlp.fc2": "down"}
    norms = {f"{ROOT}pre_layrnorm": "norm_in"}
    norms |= {f"{layer}.layer_norm1": "layers/mix_norm", f"{layer}.layer_norm2": "layers/mlp_norm"}
    pixels = CONV_2D.then(joined(side, side, -1))
    rules = [
        Rule(f"{ROOT}embeddings.class_embedding", "whole", _ROW),
        Rule(f"{ROOT}embeddings.position_embedding.weight", "places"),
        Rule(f"{ROOT}embeddings.patch_embedding.weight", "patch_in/kernel", pixels),
    ]
    for theirs, ours in parts.items():
        rules += linear(f"{layer}.{theirs}", f"layers/{ours}", LINEAR)
    for theirs, ours in norms.items():
        rules.append(Rule(f"{theirs}.weight", f"{ours}/scale"))
        rules.append(Rule(f"{theirs}.bias", f"{ours}/bias"))
    modules = {re.sub(r"\.(weight|bias)$", "", rule.theirs) for rule in rules}
    shorter = {module.removeprefix(ROOT): module for module in sorted(modules)}
    return Table(tuple(rules), ignored=(_unread(model),), originals=shorter)


def unread(model: ClipVision, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the published arrays that the network has no use for, and that go along with it."""
    return {name: array for name, array in tensors.items() if re.fullmatch(_unread(model), name)}


def _unread(model: ClipVision) -> str:
    """Returns a pattern of names: of the last layer, and of what makes one vector of a picture."""
    last = rf"encoder\.layers\.{model.depth}\..*"
    inner = rf"{last}|post_layernorm\..*|embeddings\.position_ids"
    return rf"(vision_model\.)?({inner})|visual_projection\.weight"
