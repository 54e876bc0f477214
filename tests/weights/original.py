"""Published weights in the names of the original code."""

import re


def in_original_names(originals, weights):
    """Returns published weights as one file of the original code has them.

    Args:
        originals: What Diffusers calls its modules.
        weights: Arrays by Diffusers' names.
    """
    back = {published: theirs for theirs, published in originals.items()}
    made = {}
    for name, array in weights.items():
        stem, _, ending = name.rpartition(".")
        stem, ending = (stem, f".{ending}") if ending in ("weight", "bias") else (name, "")
        layer = re.search(r"blocks\.(\d+)", stem)
        key = stem.replace(layer[0], "blocks.{}") if layer else stem
        key = back.get(key, key).replace("{}", layer[1] if layer else "")
        made[f"model.diffusion_model.{key}{ending}"] = array
    return made
