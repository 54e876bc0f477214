"""DPM-Solver++: exponential integrators of order two and three.

Reference: Lu et al., arXiv:2211.01095.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp

from jvdm.arrays import Array, NoiseLevels, PyTree
from jvdm.errors import ConfigError
from jvdm.samplers.denoiser import Denoised
from jvdm.samplers.process import expand
from jvdm.samplers.solvers.exponential import SlopeRule, first_order, node_weights, phi, span
from jvdm.samplers.solvers.solver import Context, OneEvaluation, Trial, TwoEvaluations


class Past(NamedTuple):
    """An earlier estimate of the clean data; `lam` is not finite where there is none."""

    lam: NoiseLevels
    x0: Array


def no_past(x: Array) -> Past:
    """Returns the memory of frames that have not started."""
    return Past(jnp.full(x.shape[:2], -jnp.inf, x.dtype), jnp.zeros_like(x))


@dataclass(frozen=True)
class DPMSolverPP2M(OneEvaluation):
    """Second order from the last two estimates; stochastic where `eta` is positive.

    The first step of a frame, and steps from pure noise or to clean data, are of first order.

    Attributes:
        eta: Strength of the noise of the reverse SDE: 0 is the ODE, 1 the usual SDE.
        rule: How the slope is integrated, for `eta = 0`.

    Reference: algorithm 2; for the SDE, appendix of the paper and k-diffusion's `eta`.
    """

    eta: float = 0.0
    rule: SlopeRule = "bh2"

    def __post_init__(self):
        if self.eta < 0 or (self.eta > 0 and self.rule != "bh2"):
            raise ConfigError(
                f"DPM-Solver++ 2M with eta = {self.eta} and rule {self.rule}",
                "eta is not negative, and the SDE is written for the rule bh2",
                "use eta = 0, or eta > 0 with rule bh2",
            )

    def init(self, x: Array) -> PyTree:
        """Remembers the last estimate."""
        return no_past(x)

    def move(
        self, denoised: Denoised, x: Array, state: PyTree, context: Context
    ) -> tuple[Array, PyTree]:
        """Returns the latents at `t_next`, and the estimate."""
        over, now = span(context), denoised.x0
        past = Past(over.lam, now)
        offset, usable = state.lam - over.lam, jnp.isfinite(state.lam)
        if self.eta == 0:
            (weight,) = node_weights(over.h, [offset], [usable], self.rule)
            correction = expand(over.alpha_next * weight, x) * (state.x0 - now)
            return first_order(denoised, over) + correction, past
        usable = usable & jnp.isfinite(over.h)
        slope = jnp.where(usable, over.h / jnp.where(usable, offset, 1.0), 0.0)
        gain = -0.5 * over.alpha_next * jnp.expm1(-(1 + self.eta) * over.h) * slope
        fresh = over.sigma_next * jnp.sqrt(-jnp.expm1(-2 * self.eta * over.h))
        kept = over._replace(sigma_next=over.sigma_next * jnp.exp(-self.eta * over.h))
        mean = first_order(denoised, kept) + expand(gain, x) * (state.x0 - now)
        return mean + expand(fresh, x) * context.noise(0), past


@dataclass(frozen=True)
class DPMSolverPP3M(OneEvaluation):
    """Third order from the last three estimates.

    Attributes:
        compat: Use the published formula, which counts half of the second derivative and is
            therefore of second order; other libraries have it.
        lower_order_final: The last step but one of a frame uses one estimate less.

    Reference: section 4 of the paper; the default is the integral of the parabola itself.
    """

    compat: bool = False
    lower_order_final: bool = False

    def init(self, x: Array) -> PyTree:
        """Remembers the last two estimates."""
        return no_past(x), no_past(x)

    def move(
        self, denoised: Denoised, x: Array, state: PyTree, context: Context
    ) -> tuple[Array, PyTree]:
        """Returns the latents at `t_next`, and the two estimates."""
        over, now = span(context), denoised.x0
        usable = [jnp.isfinite(past.lam) for past in state]
        if self.lower_order_final:
            usable = [use & (context.remaining > i + 1) for i, use in enumerate(usable)]
        offsets = [past.lam - over.lam for past in state]
        curvature = 0.5 if self.compat else 1.0
        weights = node_weights(over.h, offsets, usable, curvature=curvature)
        x_next = first_order(denoised, over)
        for weight, past in zip(weights, state, strict=True):
            x_next = x_next + expand(over.alpha_next * weight, x) * (past.x0 - now)
        return x_next, (Past(over.lam, now), state[0])


@dataclass(frozen=True)
class DPMSolverPP2S(TwoEvaluations):
    """Second order from a second evaluation, half way in `lambda`; no history.

    Steps from pure noise or to clean data, which have no middle, are of first order.

    Reference: algorithm 1 of the paper with `r = 1/2`.
    """

    def attempt(self, denoised: Denoised, x: Array, context: Context) -> Trial:
        """Returns a step of first order, and one to the middle."""
        process, over = context.process, span(context)
        twice = jnp.isfinite(over.h) & context.moving
        h = jnp.where(twice, over.h, 1.0)
        middle = process.inv_lam(jnp.where(twice, over.lam, 0.0) + 0.5 * h)
        # Frames without a middle are shown where they end.
        middle = jnp.where(twice, middle, context.t_next)
        shown = first_order(denoised, span(context._replace(t_next=middle)))
        return Trial(first_order(denoised, over), shown, middle, twice)

    def correct(
        self, trial: Trial, both: tuple[Denoised, Denoised], x: Array, context: Context
    ) -> Array:
        """Returns the step that takes the data to be what the middle says."""
        over = span(context)
        h = jnp.where(trial.again, over.h, 1.0)
        gain = over.alpha_next * h * phi(1, h)
        return trial.x_next + expand(gain, x) * (both[1].x0 - both[0].x0)
