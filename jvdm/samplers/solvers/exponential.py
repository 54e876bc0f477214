"""The mathematics of exponential integrators in `lambda`, shared by DPM-Solver++ and UniPC.

With `lambda = log(alpha / sigma)` the flow from `t` to `t_next` is exactly

    x_next = sigma_next / sigma x + alpha_next int_0^h exp(u - h) x0(lambda + u) du,

where `h` is the gain in `lambda`. Constant `x0` gives `alpha_next x0 + sigma_next eps`, the
step of DDIM; a polynomial through known values of `x0` adds a weighted sum of their
differences to the current one. Reference: Lu et al., arXiv:2211.01095, section 4.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp

from jvdm.arrays import Array, NoiseLevels
from jvdm.samplers.denoiser import Denoised
from jvdm.samplers.process import Values, expand, mix
from jvdm.samplers.solvers.solver import Context

SlopeRule = Literal["bh2", "bh1", "exact"]
"""How a single slope is integrated; all three are of second order.

`bh2`: `h (1 - exp(-h)) / 2`, the "midpoint" of DPM-Solver++ and the default of UniPC; `bh1`:
`h^2 / 2`; `exact`: `h^2 phi_2(-h)`, called "heun" by Diffusers.
"""

_SERIES_BELOW, _SERIES_TERMS = 1.0, 16  # the last term is below 1 / 17!, 3e-15


class Span(NamedTuple):
    """From `t` to `t_next` in the terms of the process, each per frame.

    Attributes:
        alpha_next: Share of data at `t_next`.
        sigma_next: Share of noise at `t_next`.
        lam: `lambda` at `t`; minus infinity at pure noise.
        h: Gain in `lambda`; infinite from pure noise and to clean data.
    """

    alpha_next: NoiseLevels
    sigma_next: NoiseLevels
    lam: NoiseLevels
    h: NoiseLevels


def span(context: Context) -> Span:
    """Returns the span of a step; `t > t_next`."""
    process, t, t_next = context.process, context.t, context.t_next
    lam = process.lam(t)
    return Span(process.alpha(t_next), process.sigma(t_next), lam, process.lam(t_next) - lam)


def first_order(denoised: Denoised, over: Span) -> Values:
    """Returns where constant `x0` and `eps` lead: the step of DDIM."""
    return mix(over.alpha_next, over.sigma_next, denoised.x0, denoised.eps)


class Past(NamedTuple):
    """An earlier estimate of the clean data; `lam` is not finite where there is none."""

    lam: NoiseLevels
    x0: Array


def no_past(x: Array) -> Past:
    """Returns the memory of frames that have not started."""
    return Past(jnp.full(x.shape[:2], -jnp.inf, x.dtype), jnp.zeros_like(x))


def add_past(
    x_next: Array,
    over: Span,
    x0: Array,
    past: Sequence[Past],
    remaining: Array | None = None,
    rule: SlopeRule = "bh2",
    curvature: float = 1.0,
) -> Values:
    """Adds to a step of first order what the polynomial through further estimates changes.

    Args:
        x_next: Where `x0` alone leads, or 0 for the change alone.
        over: The span of the step, from the place of `x0` on.
        x0: The estimate that the first order takes to be constant.
        past: At most three others, the nearest first.
        remaining: Steps that each frame still makes, where it is to use one estimate less.
        rule: Of `node_weights`, and so is `curvature`.
        curvature: Factor of the second derivative.
    """
    usable = [jnp.isfinite(node.lam) for node in past]
    if remaining is not None:
        usable = [use & (remaining > i + 1) for i, use in enumerate(usable)]
    offsets = [node.lam - over.lam for node in past]
    weights = node_weights(over.h, offsets, usable, rule, curvature)
    for weight, node in zip(weights, past, strict=True):
        x_next = x_next + expand(over.alpha_next * weight, x0) * (node.x0 - x0)
    return x_next


def phi(order: int, h: NoiseLevels) -> NoiseLevels:
    """Returns `phi_k(-h)`, where `phi_0 = exp` and `phi_{k+1}(z) = (phi_k(z) - 1/k!) / z`.

    Args:
        order: `k`, 1 or more.
        h: Positive and finite; below 1 the power series keeps the digits.
    """
    small = jnp.minimum(h, _SERIES_BELOW)
    series = jnp.zeros_like(h)
    for term in reversed(range(_SERIES_TERMS)):
        series = 1 / math.factorial(term + order) - small * series
    large = jnp.maximum(h, _SERIES_BELOW)
    value = jnp.exp(-large)
    for k in range(order):
        value = (1 / math.factorial(k) - value) / large
    return jnp.where(h < _SERIES_BELOW, series, value)


def node_weights(
    h: NoiseLevels,
    offsets: Sequence[NoiseLevels],
    usable: Sequence[Array],
    rule: SlopeRule = "bh2",
    curvature: float = 1.0,
) -> list[NoiseLevels]:
    """Returns `w` of `x_next = first_order + alpha_next sum_i w_i (x0_i - x0)`.

    The polynomial goes through `x0` at `lambda` and through `x0_i` at `lambda + offset_i`.

    Args:
        h: Gain in `lambda`; where it is infinite, a node at its end counts half (the
            trapezoid in `alpha / sigma`) and all others nothing.
        offsets: At most three, distinct where usable.
        usable: bool[B, F] for each node; a frame uses its leading usable ones.
        rule: Rule of a single node.
        curvature: Factor of the second derivative of a parabola.
    """
    finite = jnp.isfinite(h)
    safe_h = jnp.where(finite, h, 1.0)
    moments = [math.factorial(k) * safe_h ** (k + 1) * phi(k + 1, safe_h) for k in (1, 2, 3)]
    linear = {
        "bh2": 0.5 * safe_h * -jnp.expm1(-safe_h),
        "bh1": 0.5 * safe_h**2,
        "exact": moments[0],
    }[rule]
    safe = [
        jnp.where(use, offset, -(1.0 + i) * safe_h)
        for i, (offset, use) in enumerate(zip(offsets, usable, strict=True))
    ]
    used = jnp.zeros_like(h, jnp.int32)
    leading = jnp.ones_like(finite)
    for use in usable:
        leading = leading & use
        used = used + leading
    weights = [jnp.zeros_like(h) for _ in offsets]
    for count in range(1, len(offsets) + 1):
        chosen = [linear] if count == 1 else [moments[0], curvature * moments[1], moments[2]]
        for i in range(count):
            weight = _lagrange(chosen, safe[i], safe[:i] + safe[i + 1 : count])
            weights[i] = jnp.where((used == count) & finite, weight, weights[i])
    if weights:
        end = ~finite & (used >= 1) & (offsets[0] == h)
        weights[0] = jnp.where(end, 0.5, weights[0])
    return weights


def _lagrange(
    moments: Sequence[NoiseLevels], node: NoiseLevels, others: Sequence[NoiseLevels]
) -> NoiseLevels:
    """Returns the integral of the basis polynomial of `node`, 0 at the origin and `others`."""
    if not others:
        value, scale = moments[0], jnp.ones_like(node)
    elif len(others) == 1:
        value, scale = moments[1] - others[0] * moments[0], node - others[0]
    else:
        total, product = others[0] + others[1], others[0] * others[1]
        value = moments[2] - total * moments[1] + product * moments[0]
        scale = (node - others[0]) * (node - others[1])
    return value / (scale * node)
