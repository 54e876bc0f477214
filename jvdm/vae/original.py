"""What the original code of Wan and of LTX-Video calls the modules of its autoencoders.

Facts: `vae.py` and `vae2_2.py` of Wan-Video/Wan2.1 and Wan2.2, `causal_video_autoencoder.py` of
Lightricks/LTX-Video; `tests/weights/test_single.py` compares with what Diffusers makes of them.
"""

import re
from collections.abc import Sequence

from jvdm.weights.convert import Rule

_WAN = {
    r"^quant_conv": "conv1",
    r"^post_quant_conv": "conv2",
    r"norm_out\.gamma": "head.0.gamma",
    r"conv_out": "head.2",
    r"mid_block\.resnets\.0": "middle.0",
    r"mid_block\.attentions\.0": "middle.1",
    r"mid_block\.resnets\.1": "middle.2",
    r"norm1\.gamma": "residual.0.gamma",
    r"\.conv1$": ".residual.2",
    r"norm2\.gamma": "residual.3.gamma",
    r"\.conv2$": ".residual.6",
    r"conv_shortcut": "shortcut",
    r"conv_in$": "conv1",
}
STATISTICS = {
    "per_channel_statistics.mean-of-means": "latents_mean",
    "per_channel_statistics.std-of-means": "latents_std",
}
_LTX = {
    r"resnets": "res_blocks",
    r"conv_shortcut\.conv": "conv_shortcut",
    r"norm3": "norm3.norm",
    r"^decoder\.time_embedder": "decoder.last_time_embedder",
    r"^decoder\.scale_shift_table": "decoder.last_scale_shift_table",
}
_PART = r"(en|de)coder\.(down_blocks|up_blocks|mid_block)(\.\d+)?\.?(downsamplers\.0|\w*)(.*)"


def wan_originals(rules: Sequence[Rule], blocks: int, around: bool) -> dict[str, str]:
    """Returns what Diffusers calls the modules of an autoencoder of Wan, by their first names.

    Args:
        rules: Of the parameters, in Diffusers' names.
        blocks: Residual blocks of a level of the encoder; the decoder has one more.
        around: Whether levels are modules of their own, as in Wan 2.2.
    """
    found = {}
    for module in _modules(rules):
        name = module
        level = re.match(r"(en|de)coder\.(down|up)_blocks\.(\d+)(\.(\w+?)s?(?:\.(\d+))?)?\.", name)
        if level and level[2] == "down" and not around:
            name = name.replace("down_blocks", "downsamples")
        elif level:
            size = blocks + (level[2] == "up")  # after its blocks a level changes the rate
            place = int(level[6] or 0) if level[5] == "resnet" else size
            nested, flat = f"{level[3]}.{level[2]}samples.{place}", int(level[3]) * (size + 1)
            held = nested if around else str(flat + place)
            name = f"{level[1]}coder.{level[2]}samples.{held}.{name[level.end() :]}"
        for pattern, other in _WAN.items():
            name = re.sub(pattern, other, name)
        found[name] = module
    return found


def ltx_originals(rules: Sequence[Rule]) -> dict[str, str]:
    """Returns the same of an autoencoder of LTX-Video, whose rules are in the order of its blocks.

    What Diffusers has in levels is one list there: blocks, changes of size and of width.
    """
    counts: dict[str, list[str]] = {"en": [], "de": []}
    found = dict(STATISTICS)
    for module in _modules(rules):
        name = module
        if part := re.fullmatch(_PART, module):
            side, kind, level, inner, rest = part.groups()
            changes = inner in ("downsamplers.0", "upsamplers", "conv_in", "conv_out")
            block = f"{kind}{level}.{inner if changes else ''}"
            if block not in counts[side]:
                counts[side].append(block)
            rest = rest.removeprefix(".0") if inner == "upsamplers" else rest
            blocks = "down_blocks" if side == "en" else "up_blocks"
            inner = "" if changes else f".{inner}"
            name = f"{side}coder.{blocks}.{counts[side].index(block)}{inner}{rest}"
        for pattern, other in _LTX.items():
            name = re.sub(pattern, other, name)
        found[name] = module
    return {name: module for name, module in found.items() if name != module}


def _modules(rules: Sequence[Rule]) -> list[str]:
    """Returns modules of weights and biases, and names of other arrays, once each."""
    names = (re.sub(r"\.(weight|bias)$", "", rule.theirs) for rule in rules)
    return list(dict.fromkeys(names))
