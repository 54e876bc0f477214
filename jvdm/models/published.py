"""Layers of published transformers: names of arrays that the families have in common."""

from jvdm.weights.convert import LINEAR, SAME, Rule, halves, linear


def attention_names(layer: str, head_dim: int) -> list[Rule]:
    """Returns what Diffusers calls the attention of an `AdaLNSingleLayer`.

    Args:
        layer: Name of a layer; `{}` counts them.
        head_dim: Features of a head; where heads turn, the even ones come first here.
    """
    rules = []
    # Heads of the prompt do not turn, and so keep their order.
    for theirs, ours, order in (("attn1", "self", halves(head_dim)), ("attn2", "cross", SAME)):
        theirs, ours = f"{layer}.{theirs}", f"layers/{ours}"
        for part in "qk":
            name = f"{ours}_{part}"
            rules += linear(f"{theirs}.to_{part}", name, LINEAR.then(order), order)
            rules.append(Rule(f"{theirs}.norm_{part}.weight", f"{name}_norm/gain", order))
        rules += linear(f"{theirs}.to_v", f"{ours}_v")
        rules += linear(f"{theirs}.to_out.0", f"{ours}_out")
    return rules
