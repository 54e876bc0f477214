"""A stack of equal layers as one scanned layer."""

import threading
from typing import Any, Literal

import flax.linen as nn
import jax

from jvdm.models.low_rank import LOW_RANK

GATES = "gates"
"""Random stream of gates, given in training alone, and collection of what they let through."""

Remat = Literal["none", "matmuls", "all"]
"""What the backward pass recomputes: nothing, all but matrix products, everything."""

_MAKING = threading.Lock()  # Flax changes the fields of a class while it makes one from it


def layer_stack(layer: type[nn.Module], depth: int, remat: Remat, unroll: int, draws: bool) -> Any:
    """Returns `layer` repeated `depth` times, compiled once.

    Parameters get a leading axis of `depth`, and so do inputs and outputs of one layer.
    The layer is called as `layer(tokens, per_layer, shared) -> (tokens, per_layer)`.

    Args:
        layer: Module class of one layer.
        depth: Number of layers.
        remat: What to recompute in the backward pass.
        unroll: Layers per iteration of the compiled loop.
        draws: Whether layers draw random numbers. Flax then traces a layer twice, and numbers are
            those of the second time; else once.
    """
    with _MAKING:  # programs may be traced side by side
        if remat != "none":
            policy = None if remat == "all" else _save_products
            layer = nn.remat(layer, policy=policy, prevent_cse=False)
        return nn.scan(
            layer,
            variable_axes={"params": 0, LOW_RANK: 0, GATES: 0},
            split_rngs={"params": True, GATES: True},
            in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=depth,
            unroll=unroll,
            check_constancy_invariants=draws,
        )


def _save_products(primitive: Any, *args: Any, **params: Any) -> bool:
    """Keeps weight products and fused attention; everything else is cheap to redo."""
    name = params["target_name"] if primitive.name == "ffi_call" else primitive.name
    if name.startswith("dot_product_attention"):
        return True
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *args, **params)
