"""Guidance: one denoiser made of several branches of another.

The wrapped denoiser takes a *branch-major* batch of `n * B`: all samples of branch 0,
then all of branch 1, and so on. Its conditions, and its carry, are of that batch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Float, NoiseLevels, PyTree
from jvdm.samplers.denoiser import Denoised, Denoiser

BranchWeights = Float[Array, " n"] | Float[Array, "n B F"]
"""One weight per branch, or per branch and frame."""


def stack_branches(*branches: PyTree) -> PyTree:
    """Joins the conditions of the branches, trees of `[B, ...]`, to one of `[n B, ...]`."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *branches)


def linear(denoise: Denoiser, weights: BranchWeights | Callable[[Array], Array]) -> Denoiser:
    """Returns the weighted sum of the branches of `denoise`.

    Every linear rule is a choice of weights: with scale `s`, classifier-free guidance is
    `(1 - s, s)`; two nested conditions are `(1 - s1, s1 - s2, s2)`. The sum is the same
    in `x0`, `eps` and velocity as long as the weights sum to 1.

    Args:
        denoise: A denoiser of the branch-major batch.
        weights: The weights, or a function from `t[B, F]` to weights `[n, B, F]`. They
            may be traced: another scale does not compile again.
    """

    def guided(x: Array, t: NoiseLevels, carry: PyTree) -> tuple[Denoised, PyTree]:
        values = weights(t) if callable(weights) else weights
        branches = values.shape[0]
        tiled_x = jnp.concatenate([x] * branches)
        tiled_t = jnp.concatenate([t] * branches)
        denoised, carry = denoise(tiled_x, tiled_t, carry)

        def combine(value: Array) -> Array:
            # Added one by one: for one sample, XLA on CPU (jaxlib 0.10.2) fuses the sums over
            # a branch axis of x0 and of eps to a wrong result.
            parts = [
                weight.reshape(weight.shape + (1,) * (x.ndim - weight.ndim)) * part
                for weight, part in zip(values, jnp.split(value, branches), strict=True)
            ]
            total = parts[0]
            for part in parts[1:]:
                total = total + part
            return total

        return Denoised(combine(denoised.x0), combine(denoised.eps)), carry

    return guided


def classifier_free(denoise: Denoiser, scale: float | Float[Array, ""]) -> Denoiser:
    """Classifier-free guidance: away from branch 0, towards branch 1.

    Args:
        denoise: A denoiser of `2 B` samples, first without condition, then with.
        scale: 1 is the conditional prediction, above 1 exaggerates the condition.

    Reference: Ho and Salimans, arXiv:2207.12598.
    """
    scale = jnp.asarray(scale, jnp.float32)
    return linear(denoise, jnp.stack([1.0 - scale, scale]))
