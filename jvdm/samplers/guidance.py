"""Guidance: one denoiser made of several branches of another.

The wrapped denoiser takes a *branch-major* batch of `n * B`: all samples of branch 0,
then all of branch 1, and so on. Its conditions, and its carry, are of that batch.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jvdm.arrays import Array, Float, NoiseLevels, PyTree
from jvdm.errors import ConfigError
from jvdm.samplers.denoiser import Call, Denoised, Denoiser
from jvdm.samplers.process import Process, divide, expand, from_x0_eps, to_x0_eps

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

    Raises:
        ConfigError: If weights that are known already do not sum to 1.
    """
    if not callable(weights):
        _check_sum(weights)

    def guided(x: Array, call: Call, carry: PyTree) -> tuple[Denoised, PyTree]:
        values = weights(call.t) if callable(weights) else weights
        branches, carry = _evaluate(denoise, values.shape[0], x, call, carry)
        return Denoised(
            _weighted_sum(values, [branch.x0 for branch in branches]),
            _weighted_sum(values, [branch.eps for branch in branches]),
        ), carry

    return guided


def classifier_free(denoise: Denoiser, scale: float | Float[Array, ""]) -> Denoiser:
    """Classifier-free guidance: away from branch 0, towards branch 1.

    Args:
        denoise: A denoiser of `2 B` samples, first without condition, then with.
        scale: 1 is the conditional prediction, above 1 exaggerates the condition.

    Reference: Ho and Salimans, arXiv:2207.12598.
    """
    return linear(denoise, _pair(scale))


def in_interval(
    scale: float | Float[Array, ""], low: float, high: float
) -> Callable[[Array], Float[Array, "2 B F"]]:
    """Returns weights for `linear`: guidance where `low <= t <= high`, none elsewhere.

    Reference: Kynkaanniemi et al., arXiv:2404.07724.

    Raises:
        ConfigError: If the interval is empty.
    """
    if low > high:
        raise ConfigError(f"guidance from level {low} to {high}", "no level is in between")

    def weights(t: NoiseLevels) -> Array:
        here = jnp.where((t >= low) & (t <= high), jnp.asarray(scale, t.dtype), 1.0)
        return jnp.stack([1.0 - here, here])

    return weights


def cfg_plus_plus(denoise: Denoiser, scale: float | Float[Array, ""]) -> Denoiser:
    """Guided data, but the noise of the branch without condition, so that steps stay on path.

    Args:
        denoise: A denoiser of `2 B` samples, first without condition, then with.
        scale: Weight of the condition, 0 to 1: an interpolation, not an exaggeration.

    Raises:
        ConfigError: If a scale that is known already lies outside 0 to 1.

    Reference: Chung et al., arXiv:2406.08070, algorithm 2; meant for `DDIM`.
    """
    if isinstance(scale, float | int) and not 0 <= scale <= 1:
        raise ConfigError(
            f"CFG++ with a scale of {scale}",
            "it interpolates between two predictions",
            "use 0 to 1; a guidance scale of 7.5 is about 0.6",
        )

    def guided(x: Array, call: Call, carry: PyTree) -> tuple[Denoised, PyTree]:
        (without, given), carry = _evaluate(denoise, 2, x, call, carry)
        return Denoised(_weighted_sum(_pair(scale), [without.x0, given.x0]), without.eps), carry

    return guided


def rescaled(denoise: Denoiser, scale: float | Float[Array, ""], share: float = 0.7) -> Denoiser:
    """Classifier-free guidance whose clean data keep the contrast of the conditional branch.

    Args:
        denoise: A denoiser of `2 B` samples, first without condition, then with.
        scale: Guidance scale.
        share: 0 is plain guidance; 1 gives every sample the standard deviation that the
            conditional branch has.

    Reference: Lin et al., arXiv:2305.08891, equations 15 and 16, here on `x0`; the noise
    is what `x_t` leaves for it.
    """

    def guided(x: Array, call: Call, carry: PyTree) -> tuple[Denoised, PyTree]:
        (without, given), carry = _evaluate(denoise, 2, x, call, carry)
        x0 = _weighted_sum(_pair(scale), [without.x0, given.x0])
        eps = _weighted_sum(_pair(scale), [without.eps, given.eps])
        axes = tuple(range(1, x.ndim))
        spread = divide(jnp.std(given.x0, axes, keepdims=True), jnp.std(x0, axes, keepdims=True))
        return Denoised(x0 * (share * spread + 1.0 - share), eps), carry

    return guided


def cfg_zero_star(
    denoise: Denoiser,
    process: Process,
    scale: float | Float[Array, ""],
    zero_above: float = 2.0,
) -> Denoiser:
    """Guidance away from the best multiple of the unconditional velocity.

    `u = s u_0 + scale (u_1 - s u_0)`, with `s = <u_1, u_0> / |u_0|^2` for each sample.

    Args:
        denoise: A denoiser of `2 B` samples, first without condition, then with.
        process: The corruption process, which defines the velocity.
        scale: Guidance scale.
        zero_above: Frames at levels of this and above stand still (zero initialisation);
            the default never applies.

    Reference: Fan et al., arXiv:2503.18886, equations 8 to 10.
    """

    def guided(x: Array, call: Call, carry: PyTree) -> tuple[Denoised, PyTree]:
        branches, carry = _evaluate(denoise, 2, x, call, carry)
        without, given = (
            from_x0_eps(process, "velocity", branch.x0, branch.eps, call.t) for branch in branches
        )
        axes = tuple(range(1, x.ndim))
        along = jnp.sum(given * without, axes, keepdims=True)
        best = divide(along, jnp.sum(without * without, axes, keepdims=True))
        velocity = _weighted_sum(_pair(scale), [best * without, given])
        velocity = jnp.where(expand(call.t >= zero_above, x), 0.0, velocity)
        return Denoised(*to_x0_eps(process, "velocity", velocity, x, call.t)), carry

    return guided


def _pair(scale: float | Float[Array, ""]) -> Float[Array, "2"]:
    scale = jnp.asarray(scale, jnp.float32)
    return jnp.stack([1.0 - scale, scale])


def _evaluate(
    denoise: Denoiser, count: int, x: Array, call: Call, carry: PyTree
) -> tuple[list[Denoised], PyTree]:
    """Evaluates all branches as one batch."""
    t, t_next = (jnp.concatenate([level] * count) for level in (call.t, call.t_next))
    denoised, carry = denoise(jnp.concatenate([x] * count), Call(t, t_next, call.row), carry)
    parts = (jnp.split(value, count) for value in denoised)
    return [Denoised(x0, eps) for x0, eps in zip(*parts, strict=True)], carry


def _weighted_sum(weights: BranchWeights, parts: list[Array]) -> Array:
    """Adds one by one: for one sample, XLA on CPU (jaxlib 0.10.2) fuses the sums over a
    branch axis of x0 and of eps to a wrong result.
    """
    terms = [expand(weight, part) * part for weight, part in zip(weights, parts, strict=True)]
    return functools.reduce(jnp.add, terms)


def _check_sum(weights: BranchWeights) -> None:
    """Refuses weights that do not sum to 1, unless they are traced."""
    if isinstance(weights, Tracer):
        return
    sums = np.asarray(weights, np.float64).sum(axis=0)
    if np.abs(sums - 1.0).max() > 1e-4:
        wrong = sums.flat[np.abs(sums - 1.0).argmax()]
        raise ConfigError(
            f"guidance weights sum to {wrong:g}",
            "with another sum than 1, noise and data of a step no longer fit together",
            "give the branch without condition one minus the other weights",
        )
