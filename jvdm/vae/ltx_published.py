"""The autoencoder of LTX-Video as Diffusers publishes it: what `config.json` says, and names."""

from collections.abc import Mapping
from typing import Any

from jvdm.vae.ltx import LTXVAE, Change, Down, Up
from jvdm.vae.original import ltx_originals
from jvdm.weights.convert import CONV_3D, Rule, Table, flat, linear

Config = Mapping[str, Any]

CHANGES: dict[str, Change] = {
    "conv": "conv",
    "spatial": "space",
    "temporal": "time",
    "spatiotemporal": "both",
}
USUAL = {
    "down_block_types": ["LTXVideoDownBlock3D"] * 4,
    "decoder_block_out_channels": [128, 256, 512, 512],
    "decoder_layers_per_block": [4, 3, 3, 3, 4],
    "decoder_spatio_temporal_scaling": [True, True, True, False],
    "decoder_inject_noise": [False] * 5,
    "downsample_type": ["conv"] * 4,
    "upsample_residual": [False] * 4,
    "upsample_factor": [1] * 4,
    "timestep_conditioning": False,
}
"""What the class has where a file says nothing: that of 0.9.0 is older than these fields."""
LATER = "LTXVideo095DownBlock3D"  # changes its width as it halves the sides


def vae(config: Config, level: float, noise: float) -> LTXVAE:
    """Returns the autoencoder that `vae/config.json` describes.

    Args:
        config: What the file says.
        level: Noise level at which latents are decoded, where the decoder is told one.
        noise: Share of noise that they are mixed with there.
    """
    config = {**USUAL, **config}
    widths, blocks = config["decoder_block_out_channels"][::-1], config["decoder_layers_per_block"]
    blocks, noisy = blocks[::-1], config["decoder_inject_noise"][::-1]
    levels = (
        config["decoder_spatio_temporal_scaling"][::-1],
        config["upsample_factor"][::-1],
        config["upsample_residual"][::-1],
    )
    ups = [
        Up(blocks[i + 1], doubles, widths[i] // factor, factor, residual, noisy[i + 1])
        for i, (doubles, factor, residual) in enumerate(list(zip(*levels, strict=True)))
    ]
    return LTXVAE(
        latent_channels=config["latent_channels"],
        patch=config["patch_size"],
        width=config["block_out_channels"][0],
        downs=_downs(config),
        middle=config["layers_per_block"][-1],
        decoder_width=widths[0],
        decoder_middle=blocks[0],
        middle_noise=noisy[0],
        ups=tuple(ups),
        causal=config["decoder_causal"],
        level=level if config["timestep_conditioning"] else None,
        noise=noise,
    )


def _downs(config: Config) -> tuple[Down, ...]:
    """Returns the levels of the encoder."""
    widths, kinds = config["block_out_channels"], config["down_block_types"]
    after = widths[1:] if kinds[-1] == LATER else [*widths[1:], widths[-1]]
    halved, types = config["spatio_temporal_scaling"], config["downsample_type"]
    return tuple(
        Down(config["layers_per_block"][i], CHANGES[types[i]] if halved[i] else "none", width)
        for i, width in enumerate(after)
    )


def vae_names(model: LTXVAE) -> Table:
    """Returns what `AutoencoderKLLTXVideo` calls the parameters of the network."""
    rules = [*_conv("encoder.conv_in", "encoder/conv_in")]
    width = model.width
    for level, down in enumerate(model.downs):
        theirs = f"encoder.down_blocks.{level}"
        rules += _blocks(f"{theirs}.resnets", f"encoder/level_{level}", down.blocks)
        if down.change != "none":
            name = f"{theirs}.downsamplers.0" + ("" if down.change == "conv" else ".conv")
            rules += _conv(name, f"encoder/down_{level}/conv")
        width = width if down.change in ("none", "conv") else down.width
        if width != down.width:
            rules += _block(f"{theirs}.conv_out", f"encoder/widen_{level}", short=True)
        width = down.width
    rules += _blocks("encoder.mid_block.resnets", "encoder/middle", model.middle)
    rules += _conv("encoder.conv_out", "encoder/conv_out")

    told, noisy = model.level is not None, model.middle_noise
    rules += _conv("decoder.conv_in", "decoder/conv_in")
    theirs = "decoder.mid_block"
    rules += _blocks(f"{theirs}.resnets", "decoder/middle", model.decoder_middle, noisy, told)
    rules += _told(theirs, "decoder/middle_told") if told else []
    width = model.decoder_width
    for level, up in enumerate(model.ups):
        theirs, ours = f"decoder.up_blocks.{level}", f"decoder/level_{level}"
        if width != up.width * up.factor:
            rules += _block(f"{theirs}.conv_in", f"decoder/enter_{level}", True, up.noise)
        if up.doubles:
            rules += _conv(f"{theirs}.upsamplers.0.conv", f"decoder/up_{level}")
        rules += _blocks(f"{theirs}.resnets", ours, up.blocks, up.noise, told)
        rules += _told(theirs, f"{ours}_told") if told else []
        width = up.width
    rules += _conv("decoder.conv_out", "decoder/conv_out")
    if told:
        rules += _told("decoder", "decoder/told")
        rules.append(Rule("decoder.scale_shift_table", "decoder/modulation"))
        rules.append(Rule("decoder.timestep_scale_multiplier", "decoder/level_scale"))
    unused = ("latents_mean", "latents_std", r"per_channel_statistics\..*")
    return Table(tuple(rules), ignored=unused, originals=ltx_originals(rules))


def _blocks(
    theirs: str, ours: str, count: int, noise: bool = False, told: bool = False
) -> list[Rule]:
    """Returns the rules of residual blocks that keep their channels."""
    parts = (_block(f"{theirs}.{i}", f"{ours}_{i}", False, noise, told) for i in range(count))
    return [rule for part in parts for rule in part]


def _block(
    theirs: str, ours: str, short: bool = False, noise: bool = False, told: bool = False
) -> list[Rule]:
    """Returns the rules of a residual block; `short` says that its input is projected."""
    rules = [
        *_conv(f"{theirs}.conv1", f"{ours}/conv_0"),
        *_conv(f"{theirs}.conv2", f"{ours}/conv_1"),
    ]
    if short:
        rules += _conv(f"{theirs}.conv_shortcut", f"{ours}/short")
        rules.append(Rule(f"{theirs}.norm3.weight", f"{ours}/short_norm/scale"))
        rules.append(Rule(f"{theirs}.norm3.bias", f"{ours}/short_norm/bias"))
    if noise:
        scales = (f"{theirs}.per_channel_scale{index}" for index in (1, 2))
        rules += [Rule(scale, f"{ours}/noise_{i}", flat(2)) for i, scale in enumerate(scales)]
    if told:
        rules.append(Rule(f"{theirs}.scale_shift_table", f"{ours}/modulation"))
    return rules


def _conv(theirs: str, ours: str) -> list[Rule]:
    """Returns the rules of a convolution in space and time."""
    return linear(f"{theirs}.conv", f"{ours}/conv", CONV_3D)


def _told(theirs: str, ours: str) -> list[Rule]:
    """Returns the rules of the layers by which blocks are told the level."""
    theirs = f"{theirs}.time_embedder.timestep_embedder"
    return [
        *linear(f"{theirs}.linear_1", f"{ours}_hidden"),
        *linear(f"{theirs}.linear_2", f"{ours}_out"),
    ]
