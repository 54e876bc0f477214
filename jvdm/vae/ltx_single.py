"""What the arrays of a single file say of the autoencoder of LTX-Video that is in it.

Facts: `causal_video_autoencoder.py` of Lightricks/LTX-Video, whose files describe themselves since
0.9.1. Levels, widths, blocks and what a level changes are read of names and shapes, so that a file
need not; `tests/weights/test_single_ltx.py` compares with the configurations of Diffusers.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jvdm.errors import WeightsError
from jvdm.vae.ltx_published import LATER

Shapes = Mapping[str, tuple[int, ...]]

TYPES = {2: "temporal", 4: "spatial", 8: "spatiotemporal"}
"""What is halved, by how many cells become channels of one."""
DOUBLED = 8  # cells of what a level of the decoder makes of one


class _Block(NamedTuple):
    """A block of the list that encoder and decoder are in the original code.

    Attributes:
        kind: Residual blocks, one that changes the width, or a change of sides and frames by a
            convolution or by moving cells into channels.
        count: How many residual blocks.
        wide: Channels that go in, and that its first convolution makes.
        noise: Whether it adds noise.
    """

    kind: str
    count: int
    wide: tuple[int, int]
    noise: bool


_FIRST = {
    "res": "res_blocks.0.conv1.conv.weight",
    "width": "conv1.conv.weight",
    "cells": "conv.conv.weight",
    "conv": "conv.weight",
}
"""The first convolution of every kind of block."""


def vae_config(shapes: Shapes, said: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `vae/config.json` of Diffusers for arrays in the names of the original code.

    Args:
        shapes: Shapes by name, without `vae.`.
        said: What the metadata of the file say of the autoencoder; nothing if they do not.

    Raises:
        WeightsError: If the arrays are those of no autoencoder of LTX-Video.
    """
    try:
        encoder = _encoder(_blocks(shapes, "encoder.down_blocks"))
        decoder = _decoder(_blocks(shapes, "decoder.up_blocks"), said)
        side = math.isqrt(shapes["encoder.conv_in.conv.weight"][1] // 3)
        channels = shapes["decoder.conv_in.conv.weight"][1]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        what = "the autoencoder in the file is none of LTX-Video that jvdm knows"
        why = f"{type(error).__name__}: {str(error)[:200]}"
        raise WeightsError(what, why, "give a folder of Diffusers of this model") from error
    return {
        **{"_class_name": "AutoencoderKLLTXVideo", "in_channels": 3, "out_channels": 3},
        **{"latent_channels": channels, "patch_size": side, "patch_size_t": 1},
        **{"resnet_norm_eps": 1e-6, "scaling_factor": said.get("scaling_factor", 1.0)},
        **{"encoder_causal": True, "decoder_causal": bool(said.get("causal_decoder", False))},
        "timestep_conditioning": "decoder.last_scale_shift_table" in shapes,
        **_ratios(encoder, side),
        **encoder,
        **decoder,
    }


def _blocks(shapes: Shapes, prefix: str) -> list[_Block]:
    """Returns the blocks of a list, in its order."""
    found: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if part := re.fullmatch(rf"{re.escape(prefix)}\.(\d+)\.(.+)", name):
            found.setdefault(int(part[1]), {})[part[2]] = shape
    return [_block(found[index]) for index in range(len(found))]


def _block(shapes: Shapes) -> _Block:
    """Returns what a block is, of the shapes of its arrays."""
    kind = [kind for kind, name in _FIRST.items() if name in shapes][0]
    places = {int(name.split(".")[1]) for name in shapes if name.startswith("res_blocks.")}
    made, given = shapes[_FIRST[kind]][:2]
    noise = any(name.endswith("per_channel_scale1") for name in shapes)
    return _Block(kind, len(places), (given, made), noise)


def _encoder(blocks: Sequence[_Block]) -> dict[str, Any]:
    """Returns the fields of the encoder.

    A level is residual blocks and a change, if there is one; the last blocks are its middle.
    """
    *blocks, middle = blocks
    widths, counts, changes, later = [], [], [], False
    for index, block in enumerate(blocks):
        if block.kind == "res":
            widths.append(block.wide[0])
            counts.append(block.count)
            changes.append("")
        elif block.kind == "conv":
            changes[-1] = "conv"
        elif block.kind == "cells":  # its channels, times the cells, are those of the next level
            changes[-1], later = TYPES[(*blocks, middle)[index + 1].wide[0] // block.wide[1]], True
    if middle.kind != "res" or not counts:
        raise ValueError(f"the encoder ends in {middle.kind}")
    kind = LATER if later else "LTXVideoDownBlock3D"
    return {
        "block_out_channels": [*widths, middle.wide[0]] if later else widths,
        "down_block_types": [kind] * len(counts),
        "layers_per_block": [*counts, middle.count],
        "spatio_temporal_scaling": [bool(change) for change in changes],
        "downsample_type": [change or "conv" for change in changes],
    }


def _decoder(blocks: Sequence[_Block], said: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of the decoder, which has its levels from the last to the first."""
    middle, *blocks = blocks
    widths, counts, noisy, factors, wider = [], [], [], [], None
    for block in blocks:
        if block.kind == "cells":
            wider = DOUBLED * block.wide[0] // block.wide[1]
        elif block.kind == "res":
            factors.append(wider)
            widths.append(block.wide[0] * (wider or 1))
            counts.append(block.count)
            noisy.append(block.noise)
            wider = None
    if middle.kind != "res" or not counts:
        raise ValueError(f"the decoder begins with {middle.kind}")
    doubled = [factor is not None for factor in factors]
    return {
        "decoder_block_out_channels": widths[::-1],
        "decoder_layers_per_block": [middle.count, *counts][::-1],
        "decoder_spatio_temporal_scaling": doubled[::-1],
        "decoder_inject_noise": [middle.noise, *noisy][::-1],
        "upsample_residual": _residual(said, factors)[::-1],
        "upsample_factor": [factor or 1 for factor in factors][::-1],
    }


def _residual(said: Mapping[str, Any], factors: Sequence[int | None]) -> list[bool]:
    """Returns which levels add their input: as the file says, or those that narrow it."""
    blocks = said.get("decoder_blocks") or ()
    told = [
        isinstance(fields, Mapping) and bool(fields.get("residual"))
        for name, fields in blocks
        if name.startswith("compress")
    ]
    if len(told) != sum(factor is not None for factor in factors):
        return [(factor or 1) > 1 for factor in factors]
    return [factor is not None and told.pop() for factor in factors]


def _ratios(encoder: Mapping[str, Any], side: int) -> dict[str, int]:
    """Returns how many pixels and frames a latent cell has."""
    pairs = zip(encoder["spatio_temporal_scaling"], encoder["downsample_type"], strict=True)
    changes = [change for halved, change in pairs if halved]
    rows, frames = (sum(change != other for change in changes) for other in ("temporal", "spatial"))
    return {"spatial_compression_ratio": side * 2**rows, "temporal_compression_ratio": 2**frames}
