"""The optimizer: Muon for the matrices of the layers, Adam for everything else."""

import collections
import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jvdm.arrays import Array, Float, PyTree
from jvdm.parallel import constrain

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of an odd polynomial of degree 5, so steep at 0 that five turns take all but the smallest
singular values to between 0.7 and 1.2 (Jordan 2024)."""
ITERATIONS = 5
MOMENTUM = 0.95


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Settings of the optimizer; `build` gives the optax transformation.

    Muon orthogonalises the momentum of each weight matrix (Jordan 2024); its
    update is scaled to the root mean square of Adam's, `0.2 sqrt(max(in, out))`
    (Liu et al., arXiv:2502.16982), so that both share one learning rate. Both
    have Nesterov momentum, in the number type of the parameters.
    """

    kind: Literal["muon", "adamw"] = "muon"
    """`muon` treats matrices and stacks of matrices; `adamw` treats all alike."""
    learning_rate: float = 1e-3
    """Peak learning rate of Adam."""
    matrix_scale: float = 2.0
    """Muon's learning rate over Adam's."""
    matrix_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number type in which Muon orthogonalises, as its authors do."""
    warmup_steps: int = 200
    """Steps of linear warm-up; 0 and 1 have none."""
    decay_fraction: float = 0.4
    """Share of the run, at its end, over which the rate falls linearly."""
    final_scale: float = 0.02
    """Learning rate at the end over the peak."""
    weight_decay: float = 0.01
    """Decoupled weight decay of kernels; gains, biases, tables and embeddings have none."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient."""

    def schedule(self, num_steps: int) -> optax.Schedule:
        """Returns step -> learning rate: warm-up, constant, linear decay."""
        decay_steps = max(1, round(self.decay_fraction * num_steps))
        peak, last = self.learning_rate, self.learning_rate * self.final_scale
        warmup = max(1, min(self.warmup_steps, num_steps - decay_steps))
        return optax.join_schedules(
            [
                optax.linear_schedule(peak / warmup, peak, warmup - 1),
                optax.constant_schedule(peak),
                optax.linear_schedule(peak, last, decay_steps),
            ],
            [warmup, max(warmup, num_steps - decay_steps)],
        )

    def build(self, num_steps: int) -> optax.GradientTransformation:
        """Returns clipping, the chosen optimizer and decay, for `num_steps` steps."""
        rate: Any = self.schedule(num_steps)
        update = optax.adam(rate, b2=0.99, nesterov=self.kind == "muon")
        if self.kind == "muon":
            matrices = optax.chain(
                optax.trace(MOMENTUM, nesterov=True),
                optax.stateless(lambda moved, _: orthogonal(moved, self.matrix_dtype)),
                optax.scale_by_learning_rate(lambda step: self.matrix_scale * rate(step)),
            )
            update = optax.partition({"matrix": matrices, "other": update}, kinds)
        decay = optax.add_decayed_weights(lambda step: -self.weight_decay * rate(step), _kernels)
        return optax.chain(optax.clip_by_global_norm(self.clip_norm), update, decay)


def kinds(params: PyTree) -> PyTree:
    """Says for every leaf whether it is a `matrix` or stack of them, Muon's, or `other`.

    Dense kernels are matrices over their last two axes; a leading axis, as
    `nn.scan` makes it, is a stack of layers. Convolutions, embeddings, norms,
    biases and the first and last projections stay with Adam.
    """

    def kind(path, leaf) -> str:
        names = [str(getattr(entry, "key", entry)) for entry in path]
        hidden = names[-1].startswith("kernel") and any(name.startswith("layers") for name in names)
        return "matrix" if hidden and leaf.ndim in (2, 3) else "other"

    return jax.tree_util.tree_map_with_path(kind, params)


def orthogonal(tree: PyTree, dtype: str = "bfloat16") -> PyTree:
    """Returns every matrix orthogonalised and scaled to entries of the size of Adam's steps.

    All matrices of one shape, and those that have it turned, are one batch of products, which
    the devices of a mesh share by whole matrices.

    Args:
        tree: Matrices `[I, O]` and stacks of them `[N, I, O]`.
        dtype: Number type of the products.
    """
    leaves, structure = jax.tree.flatten(tree)
    batches = collections.defaultdict(list)
    for place, leaf in enumerate(leaves):
        batches[tuple(sorted(leaf.shape[-2:]))].append(place)
    for shape, places in batches.items():
        parts = [_lying(leaves[place], leaves[place]).reshape(-1, *shape) for place in places]
        joined = constrain(jnp.concatenate([part.astype(dtype) for part in parts]), "matrices")
        made = constrain(newton_schulz(joined), None)
        ends = [sum(map(len, parts[:count])) for count in range(1, len(parts))]
        for place, part in zip(places, jnp.split(made, ends), strict=True):
            like = leaves[place]
            update = _lying(part, like).reshape(like.shape).astype(like.dtype)
            leaves[place] = 0.2 * math.sqrt(shape[1]) * update
    return jax.tree.unflatten(structure, leaves)


def newton_schulz(x: Float[Array, "N I O"]) -> Float[Array, "N I O"]:
    """Returns `U V^T` of every matrix `U S V^T`, but for singular values that are only near 1.

    The products are of the number type of `x`, sums of them are rounded once. `I` is at most `O`,
    or the products are larger than they need be.
    """
    linear, cubic, quintic = COEFFICIENTS

    def add(factor: float, y: Array, other: float, z: Array) -> Array:
        wide = factor * y.astype(jnp.float32) + other * z.astype(jnp.float32)
        return wide.astype(x.dtype)

    norm = jnp.linalg.norm(x.astype(jnp.float32), axis=(1, 2), keepdims=True)
    x = (x / (norm + 1e-8)).astype(x.dtype)
    for _ in range(ITERATIONS):
        squares = x @ x.mT
        x = add(linear, x, 1.0, add(cubic, squares, quintic, squares @ squares) @ x)
    return x


def _lying(x: Array, like: Array) -> Array:
    """Turns matrices if those of `like` have more rows than columns."""
    return x.mT if like.shape[-2] > like.shape[-1] else x


def _kernels(params: PyTree) -> PyTree:
    """Says for every leaf whether it decays: stacked gains have two axes too."""

    def named(path, leaf) -> bool:
        return str(getattr(path[-1], "key", path[-1])).startswith("kernel")

    return jax.tree_util.tree_map_with_path(named, params)
