"""LTX-Video: a folder of Diffusers as a system, and back."""

from collections.abc import Mapping
from typing import Any

from jvdm.models.ltx import LTXDiT
from jvdm.weights.convert import LINEAR, SAME, Rule, Table, halves, linear

Config = Mapping[str, Any]
PIPELINES = ()


def transformer(config: Config) -> LTXDiT:
    """Returns the network that `transformer/config.json` describes."""
    heads, size = config["num_attention_heads"], config["attention_head_dim"]
    return LTXDiT(
        width=heads * size,
        depth=config["num_layers"],
        latent_channels=config["in_channels"],
        head_dim=size,
        mlp_width=4 * heads * size,
    )


def transformer_names(model: LTXDiT) -> Table:
    """Returns what `LTXVideoTransformer3DModel` calls the parameters of the network."""
    heads, layer = halves(model.head_dim), "transformer_blocks.{}"
    rules = [
        *linear("proj_in", "patch_in"),
        *linear("time_embed.emb.timestep_embedder.linear_1", "time_hidden"),
        *linear("time_embed.emb.timestep_embedder.linear_2", "time_out"),
        *linear("time_embed.linear", "modulation"),
        *linear("caption_projection.linear_1", "text_hidden"),
        *linear("caption_projection.linear_2", "text_out"),
        Rule("scale_shift_table", "head_modulation"),
        *linear("proj_out", "patch_out"),
        Rule(f"{layer}.scale_shift_table", "layers/modulation"),
        *linear(f"{layer}.ff.net.0.proj", "layers/up"),
        *linear(f"{layer}.ff.net.2", "layers/down"),
    ]
    # Heads of the prompt do not turn, and so keep their order.
    for theirs, ours, order in (("attn1", "self", heads), ("attn2", "cross", SAME)):
        theirs, ours = f"{layer}.{theirs}", f"layers/{ours}"
        for part in "qk":
            name = f"{ours}_{part}"
            rules += linear(f"{theirs}.to_{part}", name, LINEAR.then(order), order)
            rules.append(Rule(f"{theirs}.norm_{part}.weight", f"{name}_norm/gain", order))
        rules += linear(f"{theirs}.to_v", f"{ours}_v")
        rules += linear(f"{theirs}.to_out.0", f"{ours}_out")
    return Table(tuple(rules))
