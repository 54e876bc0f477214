"""T5 encoders as Transformers publishes them: what `config.json` says, and names of arrays."""

from collections.abc import Mapping
from typing import Any

from jvdm.text.pieces import PieceTokenizer
from jvdm.text.t5 import T5
from jvdm.weights.convert import LINEAR, Rule, Table


def text_encoder(config: Mapping[str, Any], tokenizer: PieceTokenizer) -> T5:
    """Returns the network that `text_encoder/config.json` describes."""
    return T5(
        tokenizer=tokenizer,
        vocabulary=config["vocab_size"],
        width=config["d_model"],
        depth=config["num_layers"],
        heads=config["num_heads"],
        head_dim=config["d_kv"],
        mlp_width=config["d_ff"],
        buckets=config["relative_attention_num_buckets"],
        farthest=config["relative_attention_max_distance"],
        one_table=config.get("model_type") != "umt5",
    )


def text_encoder_names(encoder: T5) -> Table:
    """Returns what `T5EncoderModel` or `UMT5EncoderModel` calls the parameters of the network."""
    layer, first = "encoder.block.{}.layer", "encoder.block.0.layer"
    holder, ours = (first, "places") if encoder.one_table else (layer, "layers/places")
    rules = [
        Rule("shared.weight", "kernel"),
        Rule("encoder.final_layer_norm.weight", "norm/scale"),
        Rule(f"{layer}.0.layer_norm.weight", "layers/mix_norm/scale"),
        Rule(f"{layer}.1.layer_norm.weight", "layers/mlp_norm/scale"),
        Rule(f"{holder}.0.SelfAttention.relative_attention_bias.weight", ours),
    ]
    attention = {"q": "q", "k": "k", "v": "v", "o": "out"}
    dense = {"wi_0": "gate", "wi_1": "up", "wo": "down"}
    parts = {f"{layer}.0.SelfAttention.{theirs}": ours for theirs, ours in attention.items()}
    parts |= {f"{layer}.1.DenseReluDense.{theirs}": ours for theirs, ours in dense.items()}
    rules += [
        Rule(f"{name}.weight", f"layers/{ours}/kernel", LINEAR) for name, ours in parts.items()
    ]
    return Table(tuple(rules), copies={"encoder.embed_tokens.weight": "shared.weight"})
