"""Solvers of Karras et al. in `x / alpha` and `r = sigma / alpha`, where `d(x / alpha) = eps dr`.

For the EDM process these are the levels themselves; written so, they work for any process.
Reference: Karras et al., arXiv:2206.00364, algorithm 2.
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp

from jvdm.arrays import Array, NoiseLevels
from jvdm.errors import ConfigError
from jvdm.samplers.denoiser import Denoised
from jvdm.samplers.process import divide, expand
from jvdm.samplers.solvers.exponential import first_order, span
from jvdm.samplers.solvers.solver import Both, Context, Trial, TwoEvaluations

_LARGEST_GAMMA = math.sqrt(2.0) - 1.0  # algorithm 2, line 4


@dataclass(frozen=True)
class EDM(TwoEvaluations):
    """Adds a little noise (churn), then steps from the raised level.

    Churn needs both ends of the noise to be finite: there is none at pure noise.

    Attributes:
        corrector: Average the slopes of both ends (Heun, second order); not in steps to
            clean data and from pure noise.
        s_churn: Total churn of a frame's run, divided among its steps; 0 is the ODE.
        s_min: Smallest `sigma / alpha` with churn.
        s_max: Largest one.
        s_noise: Standard deviation of the added noise.
    """

    corrector: bool = True
    s_churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self):
        if self.s_churn < 0 or self.s_noise < 0 or self.s_min > self.s_max:
            raise ConfigError(
                f"churn {self.s_churn}, noise {self.s_noise} in {self.s_min}..{self.s_max}",
                "churn and noise are not negative, and s_min is at most s_max",
                "use s_churn = 0 for the deterministic solver",
            )

    @property
    def evaluations(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Network evaluations per step."""
        return 2 if self.corrector else 1

    def attempt(self, denoised: Denoised, x: Array, context: Context) -> Trial:
        """Returns a step of first order in `r`."""
        over = span(context)
        x_next = first_order(denoised, over)
        again = jnp.isfinite(over.h) & context.moving & self.corrector
        return Trial(x_next, x_next, context.t_next, again)

    def correct(self, trial: Trial, both: Both, x: Array, context: Context) -> Array:
        """Returns the step along the mean of both slopes."""
        process, over, t = context.process, span(context), context.t
        ratio = divide(process.sigma(t) * over.alpha_next, process.alpha(t))
        half = expand(0.5 * (over.sigma_next - ratio), x)
        return trial.x_next + half * (both[1].eps - both[0].eps)

    def begin(self, x: Array, context: Context) -> tuple[Array, NoiseLevels]:
        """Returns the latents with more noise, and their level."""
        process, t = context.process, context.t
        if self.s_churn == 0:
            return x, t
        alpha, sigma = process.alpha(t), process.sigma(t)
        ratio = divide(sigma, alpha)
        steps = jnp.maximum(context.updates + context.remaining, 1)
        gamma = jnp.minimum(self.s_churn / steps, _LARGEST_GAMMA)
        raised = process.inv_lam(-jnp.log(jnp.where(alpha > 0, ratio, 1.0) * (1 + gamma)))
        churned = (alpha > 0) & (ratio >= self.s_min) & (ratio <= self.s_max) & context.moving
        raised = jnp.where(churned, jnp.clip(raised, t, process.t_max), t)
        scale = divide(process.alpha(raised), alpha)
        added = jnp.sqrt(jnp.maximum(process.sigma(raised) ** 2 - (scale * sigma) ** 2, 0.0))
        noisier = expand(scale, x) * x + expand(self.s_noise * added, x) * context.noise(0)
        return jnp.where(expand(churned, x), noisier, x), raised
