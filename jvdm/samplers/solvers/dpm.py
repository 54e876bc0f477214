"""DPM-Solver++: exponential integrators of order two and three.

Reference: Lu et al., arXiv:2211.01095.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from jvdm.arrays import Array, PyTree
from jvdm.errors import ConfigError
from jvdm.samplers.denoiser import Denoised
from jvdm.samplers.process import expand
from jvdm.samplers.solvers.exponential import (
    Past,
    SlopeRule,
    add_past,
    first_order,
    no_past,
    phi,
    span,
)
from jvdm.samplers.solvers.solver import Both, Context, Moved, OneEvaluation, Trial, TwoEvaluations


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

    def move(self, denoised: Denoised, x: Array, state: PyTree, context: Context) -> Moved:
        """Returns the latents at `t_next`, and the estimate."""
        over, now = span(context), denoised.x0
        past = Past(over.lam, now)
        if self.eta == 0:
            x_next = first_order(denoised, over)
            return add_past(x_next, over, now, (state,), rule=self.rule), past
        usable = jnp.isfinite(state.lam) & jnp.isfinite(over.h)
        slope = jnp.where(usable, over.h / jnp.where(usable, state.lam - over.lam, 1.0), 0.0)
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

    def move(self, denoised: Denoised, x: Array, state: PyTree, context: Context) -> Moved:
        """Returns the latents at `t_next`, and the two estimates."""
        over, now = span(context), denoised.x0
        remaining = context.remaining if self.lower_order_final else None
        curvature = 0.5 if self.compat else 1.0
        x_next = first_order(denoised, over)
        x_next = add_past(x_next, over, now, state, remaining, curvature=curvature)
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

    def correct(self, trial: Trial, both: Both, x: Array, context: Context) -> Array:
        """Returns the step that takes the data to be what the middle says."""
        over = span(context)
        h = jnp.where(trial.again, over.h, 1.0)
        gain = over.alpha_next * h * phi(1, h)
        return trial.x_next + expand(gain, x) * (both[1].x0 - both[0].x0)
