"""Low-rank changes of a network that stay beside its weights (LoRA, Hu et al., arXiv:2106.09685).

A kernel `W [in, out]` is read as `W + down @ up` with `down [in, R]` and `up [R, out]`, layer by
layer inside the compiled loop: one layer's kernels are made at a time, and its products cost what
they cost without a change. XLA's plan for a call of Wan 2.1 1.3B in float32 (5.7 GB of weights,
rank 32, 7,800 tokens): 0.54 GB beside the weights without changes, 0.63 GB so, 6.1 GB if all
layers were joined before the loop (`tests/models/test_low_rank.py` has the test on a small one). A
product `x down up` beside every product would read and write the activations once more.

Linen keeps the changes in a collection of variables, `LOW_RANK`, with the paths of the parameters:
`layers/self_q/kernel_down` and `kernel_up` change `layers/self_q/kernel`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Float, PyTree, no_type_check
from jvdm.weights.safetensors import flatten, unflatten

LOW_RANK = "low_rank"
DOWN, UP = "_down", "_up"


@no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapted:
    """Parameters of a network, and changes beside them.

    Attributes:
        params: The parameters, unchanged.
        low_rank: Trees of factors `kernel_down` and `kernel_up`, one for each set of changes; the
            factors of a stack of layers have a leading axis.
        whole: Trees of what is added to other arrays, one for each set.
        strengths: How strongly each set is applied; 0 is not at all, bit for bit.
    """

    params: PyTree
    low_rank: tuple[PyTree, ...]
    whole: tuple[PyTree, ...]
    strengths: Float[Array, " n"]


def variables(params: PyTree) -> dict[str, PyTree]:
    """Returns what a network is applied to: parameters, and their changes if they have any."""
    if not isinstance(params, Adapted):
        return {"params": params}
    factors = [flatten(tree) for tree in params.low_rank]
    joined: dict[str, Array] = {}
    for path in sorted({path for tree in factors for path in tree if path.endswith(DOWN)}):
        up = path.removesuffix(DOWN) + UP
        mine = [(tree, params.strengths[i]) for i, tree in enumerate(factors) if path in tree]
        joined[path] = jnp.concatenate([tree[path] for tree, _ in mine], -1)
        joined[up] = jnp.concatenate([strength * tree[up] for tree, strength in mine], -2)
    whole = [flatten(tree) for tree in params.whole]
    return {"params": _summed(params.params, whole, params.strengths), LOW_RANK: unflatten(joined)}


def _summed(
    params: PyTree, changes: Sequence[Mapping[str, Array]], strengths: Float[Array, " n"]
) -> PyTree:
    """Returns parameters with whole arrays added: in float32, rounded once."""
    leaves = flatten(params)
    for path in sorted({path for tree in changes for path in tree}):
        mine = [strengths[i] * tree[path] for i, tree in enumerate(changes) if path in tree]
        leaves[path] = (leaves[path].astype(jnp.float32) + sum(mine)).astype(leaves[path].dtype)
    return unflatten(leaves)


@jax.custom_vjp
def adapted_product(
    x: Float[Array, "T I"],
    kernel: Float[Array, "I O"],
    down: Float[Array, "I R"],
    up: Float[Array, "R O"],
) -> Float[Array, "T O"]:
    """Returns `x @ (kernel + down @ up)` in the type of `x`; the sum is made in float32.

    The gradient of the factors goes through their rank: it never makes that of the kernel, which
    costs as much as the product itself, unless somebody asks for it.
    """
    return jnp.matmul(x, _joined(kernel, down, up, x.dtype))


def _joined(kernel: Array, down: Array, up: Array, dtype: Any) -> Array:
    """Returns the changed kernel, rounded once."""
    change = jnp.matmul(
        down.astype(jnp.float32), up.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
    )
    return (kernel.astype(jnp.float32) + change).astype(dtype)


def _forward(*given: Array) -> tuple[Array, tuple[Array, ...]]:
    return adapted_product(*given), given


def _backward(given: tuple[Array, ...], gradient: Array) -> tuple[Array, ...]:
    x, kernel, down, up = given
    back = jnp.matmul(gradient, _joined(kernel, down, up, x.dtype).T)
    low, high = jnp.matmul(gradient, up.astype(x.dtype).T), jnp.matmul(x, down.astype(x.dtype))
    found = (jnp.matmul(x.T, gradient), jnp.matmul(x.T, low), jnp.matmul(high.T, gradient))
    return back, *(new.astype(old.dtype) for new, old in zip(found, given[1:], strict=True))


adapted_product.defvjp(_forward, _backward)
