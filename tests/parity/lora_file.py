"""Files of low-rank changes of the small networks, as training writes them, of drawn factors."""

import importlib
from pathlib import Path

import numpy as np

from jvdm.weights import lora
from jvdm.weights.safetensors import flatten, unflatten
from tests.models import test_ltx
from tests.models.test_wan import WAN, parameters

wan = importlib.import_module("jvdm.configs.families.wan")
TABLE = wan.transformer_names(WAN)
LTX_TABLE = test_ltx.ltx.transformer_names(test_ltx.LTX)
RANK, SCALE = 2, 3.0  # alpha is 6
LAYERS = [f"{kind}_{part}" for kind in ("self", "cross") for part in ("q", "k", "v", "out")]


def factors(params=None) -> dict:
    """Returns factors of the attentions and feed-forward parts, the same anywhere."""
    leaves = flatten(parameters() if params is None else params)
    rng, made = np.random.RandomState(11), {}
    for layer in (*LAYERS, "up", "down"):
        depth, width, size = leaves[f"layers/{layer}/kernel"].shape
        for end, shape in (("down", (depth, width, RANK)), ("up", (depth, RANK, size))):
            made[f"layers/{layer}/kernel_{end}"] = rng.normal(0, 0.1, shape).astype(np.float32)
    return unflatten(made)


def write_file(path: Path) -> Path:
    """Writes them in the names of Diffusers."""
    changes = lora.changes_of(factors(), TABLE, parameters(), SCALE)
    lora.write(path, {"transformer.": changes})
    return path


def write_ltx_file(path: Path) -> Path:
    """Writes those of LTX-Video."""
    params = test_ltx.parameters()
    changes = lora.changes_of(factors(params), LTX_TABLE, params, SCALE)
    lora.write(path, {"transformer.": changes})
    return path
