"""Wan 2.1 1.3B and LTX-Video 2B at their full size, with weights that anyone can make again.

`PYTHONPATH=... python -m tests.parity.full_size NAME` stores what Diffusers makes of them.
"""

import importlib
import sys
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from jvdm.families import FAMILIES
from tests.parity import references
from tests.parity.references import inputs

NAME, LTX_NAME = "wan_full_size", "ltx_full_size"
CONFIG = dict(FAMILIES["wan-1.3b-480p"].transformer)
LTX_CONFIG = dict(FAMILIES["ltx-2b-512p"].transformer)
LTX_SIZES = (2, 2, 3)  # latent frames, rows and columns
LEVEL, TOKENS = 700.0, 24
POOL = 2**24 - 3  # a prime: no two rows of a kernel begin at the same number


class Drawn(Mapping[str, Any]):
    """Arrays by published name, each made when it is asked for, in bfloat16.

    Each is a stretch of one pool of normal numbers, from where its name says, scaled as
    `references.drawn` scales.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]]):
        self.shapes = shapes
        self.pool = np.random.RandomState(0).standard_normal(POOL).astype(np.float32)

    def __getitem__(self, name: str) -> np.ndarray:
        shape = tuple(self.shapes[name])
        first = zlib.crc32(name.encode()) % POOL
        noise = np.resize(np.concatenate([self.pool[first:], self.pool[:first]]), shape)
        wide = len(shape) > 1 and name.endswith("weight")
        gain = np.float32("norm" in name and name.endswith("weight"))
        scale = 1.0 / np.sqrt(np.prod(shape[1:])) if wide else 0.1
        return (gain + np.float32(scale) * noise).astype(ml_dtypes.bfloat16)

    def __iter__(self):
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def given() -> list[np.ndarray]:
    """Returns latents `[1, 16, 1, 8, 8]` and states of a prompt `[1, 24, 4096]`."""
    return inputs((1, CONFIG["in_channels"], 1, 8, 8), (1, TOKENS, CONFIG["text_dim"]), seed=9)


def given_to_ltx() -> list[np.ndarray]:
    """Returns latents `[1, 12, 128]`, frame by frame, and states of a prompt `[1, 24, 4096]`."""
    tokens = int(np.prod(LTX_SIZES))
    return inputs((1, tokens, LTX_CONFIG["in_channels"]), (1, TOKENS, 4096), seed=9)


def filled(network_class: str, config: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Returns a network of Diffusers with drawn weights in float32, and the shapes of these."""
    diffusers, torch = map(importlib.import_module, ("diffusers", "torch"))
    with torch.device("meta"):
        network = getattr(diffusers, network_class)(**config)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    weights, state = Drawn(shapes), {}
    for name in shapes:
        state[name] = torch.from_numpy(weights[name].astype(np.float32))
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval(), shapes


def reference():
    """Returns configuration, shapes, and what Diffusers makes in float32 (5.7 GB of weights)."""
    diffusers, torch = map(importlib.import_module, ("diffusers", "torch"))
    network, shapes = filled("WanTransformer3DModel", CONFIG)
    rope = diffusers.models.transformers.transformer_wan.WanRotaryPosEmbed
    heads = CONFIG["attention_head_dim"]
    network.rope = rope(heads, network.config.patch_size, network.config.rope_max_seq_len)
    x, text = map(torch.from_numpy, given())
    with torch.no_grad():
        made = network(x, torch.tensor([LEVEL]), text).sample
    return CONFIG, shapes, {"made": made.numpy()}


def ltx_reference():
    """Returns the same of LTX-Video (7.7 GB of weights)."""
    torch = importlib.import_module("torch")
    network, shapes = filled("LTXVideoTransformer3DModel", LTX_CONFIG)
    x, text = map(torch.from_numpy, given_to_ltx())
    sizes = dict(zip(("num_frames", "height", "width"), LTX_SIZES, strict=True))
    scale = {"rope_interpolation_scale": (8 / 25, 32, 32)}
    mask = torch.ones(1, TOKENS)
    with torch.no_grad():
        made = network(x, text, torch.tensor([LEVEL]), mask, **sizes, **scale).sample
    return LTX_CONFIG, shapes, {"made": made.reshape(1, *LTX_SIZES, -1).numpy()}


REFERENCES = {NAME: reference, LTX_NAME: ltx_reference}


if __name__ == "__main__":
    for name in sys.argv[1:] or REFERENCES:
        references.store(name, *REFERENCES[name]())
