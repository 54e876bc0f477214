"""Autoencoders of Wan as Diffusers publishes them: what `config.json` says, and names of arrays."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jvdm.errors import WeightsError
from jvdm.vae.original import wan_originals
from jvdm.vae.wan import WanVAE
from jvdm.weights.convert import (
    CONV_2D,
    CONV_3D,
    FIRST,
    LEAD,
    SAME,
    Layout,
    Rule,
    Table,
    flat,
    linear,
)


def vae(config: Mapping[str, Any]) -> WanVAE:
    """Returns the autoencoder that `vae/config.json` describes.

    Raises:
        WeightsError: If it has parts that neither Wan 2.1 nor Wan 2.2 has.
    """
    if config.get("attn_scales"):
        what = "an autoencoder of the class AutoencoderKLWan with attn_scales"
        raise WeightsError(what, "those of Wan attend in the middle alone", "use weights of Wan")
    return WanVAE(
        latent_channels=config["z_dim"],
        width=config["base_dim"],
        decoder_width=config.get("decoder_base_dim"),
        multiples=tuple(config["dim_mult"]),
        blocks=config["num_res_blocks"],
        time=tuple(config["temperal_downsample"]),
        patch=config.get("patch_size") or 1,
        around=bool(config.get("is_residual")),
    )


def vae_names(model: WanVAE) -> Table:
    """Returns what `AutoencoderKLWan` calls the parameters of the network."""
    pixels, most = _squares(model.patch, -2), model.decoder_width or model.width
    rules = [
        *_conv("quant_conv", "encoder/frames/moments"),
        *_conv("post_quant_conv", "decoder/frames/latents"),
        *_conv("encoder.conv_in", "encoder/cells/conv_in", CONV_3D.then(pixels)),
        *_ends("encoder", "encoder/frames"),
        *_conv("encoder.conv_out", "encoder/frames/conv_out"),
        *_middle("encoder.mid_block", "encoder/frames/middle"),
        *_encoder_levels(model, [model.width * multiple for multiple in model.multiples]),
        *_conv("decoder.conv_in", "decoder/frames/conv_in"),
        *_middle("decoder.mid_block", "decoder/frames/middle"),
        *_decoder_levels(model, [most * multiple for multiple in reversed(model.multiples)]),
        *_ends("decoder", "decoder/cells"),
    ]
    pixels = _squares(model.patch, -1)
    rules += linear("decoder.conv_out", "decoder/cells/conv_out/conv", CONV_3D.then(pixels), pixels)
    return Table(tuple(rules), originals=wan_originals(rules, model.blocks, model.around))


def _encoder_levels(model: WanVAE, widths: list[int]) -> list[Rule]:
    """Returns the rules of the levels from pixels on."""
    rules, index, last = [], 0, len(widths) - 1
    for level, width in enumerate(widths):
        blocks = f"encoder.down_blocks.{level}"
        for block in range(model.blocks):
            grows = block == 0 and width != widths[max(level - 1, 0)]
            theirs = f"{blocks}.resnets.{block}" if model.around else _numbered(index + block)
            rules += _block(theirs, f"encoder/cells/level_{level}_{block}", grows)
        index += model.blocks + 1
        if level < last:
            theirs = f"{blocks}.downsampler" if model.around else _numbered(index - 1)
            ours = f"encoder/cells/down_{level}"
            rules += linear(f"{theirs}.resample.1", f"{ours}/space", CONV_2D.then(LEAD))
            if model.time[level]:
                rules += linear(f"{theirs}.time_conv", f"{ours}/time", CONV_3D)
    return rules


def _decoder_levels(model: WanVAE, widths: list[int]) -> list[Rule]:
    """Returns the rules of the levels from latents on."""
    rules, given, last = [], widths[0], len(widths) - 1
    for level, width in enumerate(widths):
        blocks = f"decoder.up_blocks.{level}"
        for block in range(model.blocks + 1):
            ours = f"decoder/cells/level_{level}_{block}"
            rules += _block(f"{blocks}.resnets.{block}", ours, block == 0 and given != width)
        given = width if model.around else width // 2
        if level < last:
            theirs = f"{blocks}.upsampler" if model.around else f"{blocks}.upsamplers.0"
            ours = f"decoder/cells/up_{level}"
            rules += linear(f"{theirs}.resample.1", f"{ours}/space", CONV_2D.then(LEAD))
            if model.time[-1 - level]:
                rules += _conv(f"{theirs}.time_conv", f"{ours}/time")
    return rules


def _numbered(index: int) -> str:
    """Returns a block of an encoder that numbers blocks and changes of rate together."""
    return f"encoder.down_blocks.{index}"


def _ends(theirs: str, ours: str) -> list[Rule]:
    """Returns the rule of the norm before the last convolution."""
    return [Rule(f"{theirs}.norm_out.gamma", f"{ours}/norm_out/gain", flat(3))]


def _middle(theirs: str, ours: str) -> list[Rule]:
    """Returns the rules of the blocks with attention between them."""
    attention, point = f"{theirs}.attentions.0", CONV_2D.then(FIRST).then(FIRST)
    return [
        *_block(f"{theirs}.resnets.0", f"{ours}/block_0"),
        *_block(f"{theirs}.resnets.1", f"{ours}/block_1"),
        Rule(f"{attention}.norm.gamma", f"{ours}/attention/norm/gain", flat(2)),
        *linear(f"{attention}.to_qkv", f"{ours}/attention/qkv", point),
        *linear(f"{attention}.proj", f"{ours}/attention/out", point),
    ]


def _block(theirs: str, ours: str, short: bool = False) -> list[Rule]:
    """Returns the rules of a residual block; `short` says that its input is projected."""
    rules = _conv(f"{theirs}.conv_shortcut", f"{ours}/short") if short else []
    for index in (0, 1):
        rules += _conv(f"{theirs}.conv{index + 1}", f"{ours}/conv_{index}")
        rules.append(Rule(f"{theirs}.norm{index + 1}.gamma", f"{ours}/norm_{index}/gain", flat(3)))
    return rules


def _conv(theirs: str, ours: str, kernel: Layout = CONV_3D) -> list[Rule]:
    """Returns the rules of a convolution in time."""
    return linear(theirs, f"{ours}/conv", kernel)


def _squares(side: int, axis: int) -> Layout:
    """Returns the layout of an axis of pixels of a square.

    They are published by channel, column, row and are ours by row, column, channel (`fold`).
    """
    if side == 1:
        return SAME

    def change(x: np.ndarray, parts: tuple[int, int, int]) -> np.ndarray:
        place = x.ndim + axis
        shape = (*x.shape[:place], *parts, *x.shape[place + 1 :])
        return x.reshape(shape).swapaxes(place, place + 2).reshape(x.shape)

    return Layout(
        lambda x: change(x, (-1, side, side)),
        lambda x: change(x, (side, side, -1)),
    )
