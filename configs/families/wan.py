"""Wan 2.1 text to video: a folder of Diffusers (`WanPipeline`) is a system and a table of names."""

from collections.abc import Mapping
from typing import Any

from jvdm.models.wan import WanDiT
from jvdm.weights.convert import (
    CONV_3D,
    FIRST,
    LINEAR,
    SAME,
    Layout,
    Rule,
    Table,
    halves,
    joined,
)

Config = Mapping[str, Any]


def transformer(config: Config) -> WanDiT:
    """Returns the network that `transformer/config.json` describes."""
    heads, size = config["num_attention_heads"], config["attention_head_dim"]
    return WanDiT(
        width=heads * size,
        depth=config["num_layers"],
        latent_channels=config["in_channels"],
        head_dim=size,
        mlp_width=config["ffn_dim"],
        patch=config["patch_size"][1],
        frequencies=config["freq_dim"] // 2,
        cross_norm=config["cross_attn_norm"],
    )


def transformer_names(model: WanDiT) -> Table:
    """Returns what `WanTransformer3DModel` calls the parameters of the network."""
    heads, side = halves(model.head_dim), model.patch
    rules = [
        *_linear("patch_embedding", "patch_in", CONV_3D.then(joined(1, side, side, -1))),
        *_linear("condition_embedder.time_embedder.linear_1", "time_hidden"),
        *_linear("condition_embedder.time_embedder.linear_2", "time_out"),
        *_linear("condition_embedder.time_proj", "modulation"),
        *_linear("condition_embedder.text_embedder.linear_1", "text_hidden"),
        *_linear("condition_embedder.text_embedder.linear_2", "text_out"),
        Rule("scale_shift_table", "head_modulation", FIRST),
        *_linear("proj_out", "patch_out"),
        Rule("blocks.{}.scale_shift_table", "layers/modulation", FIRST),
        *_linear("blocks.{}.ffn.net.0.proj", "layers/up"),
        *_linear("blocks.{}.ffn.net.2", "layers/down"),
    ]
    # Heads of the prompt do not turn, and so keep their order.
    for theirs, ours, order in (("attn1", "self", heads), ("attn2", "cross", SAME)):
        theirs, ours = f"blocks.{{}}.{theirs}", f"layers/{ours}"
        for part in "qk":
            name = f"{ours}_{part}"
            rules += _linear(f"{theirs}.to_{part}", name, LINEAR.then(order), order)
            rules.append(Rule(f"{theirs}.norm_{part}.weight", f"{name}_norm/gain", order))
        rules += _linear(f"{theirs}.to_v", f"{ours}_v")
        rules += _linear(f"{theirs}.to_out.0", f"{ours}_out")
    if model.cross_norm:
        rules.append(Rule("blocks.{}.norm2.weight", "layers/cross_norm/scale"))
        rules.append(Rule("blocks.{}.norm2.bias", "layers/cross_norm/bias"))
    return Table(tuple(rules), ignored=(r"blocks\.\d+\.attn2\.norm_added_q\.weight",))


def _linear(theirs: str, ours: str, kernel: Layout = LINEAR, bias: Layout = SAME) -> list[Rule]:
    """Returns the rules of a product or convolution with bias."""
    return [
        Rule(f"{theirs}.weight", f"{ours}/kernel", kernel),
        Rule(f"{theirs}.bias", f"{ours}/bias", bias),
    ]
