"""Solvers that noise the clean estimate again: DDIM, DDPM and consistency sampling."""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp

from jvdm.arrays import Array, NoiseLevels, PyTree
from jvdm.errors import ConfigError
from jvdm.samplers.denoiser import Denoised
from jvdm.samplers.process import corrupt, divide, expand, mix
from jvdm.samplers.solvers.solver import Context, Moved, OneEvaluation


@dataclass(frozen=True)
class DDIM(OneEvaluation):
    """First order, exact for constant `x0` and `eps`; optionally stochastic.

    Attributes:
        eta: Share of the ancestral noise that is drawn afresh, 0 (none) to 1 (DDPM with the
            smaller variance).

    Reference: Song et al., arXiv:2010.02502, equations 12 and 16.
    """

    eta: float = 0.0

    def __post_init__(self):
        if not 0 <= self.eta <= 1:
            raise ConfigError(
                f"DDIM with eta = {self.eta}",
                "eta is the share of fresh noise",
                "use 0 (deterministic) to 1 (ancestral)",
            )

    def move(self, denoised: Denoised, x: Array, state: PyTree, context: Context) -> Moved:
        """Returns the latents at `t_next`."""
        if self.eta == 0:
            return corrupt(context.process, denoised.x0, context.t_next, denoised.eps), state
        fresh = self.eta * _posterior_std(context)
        return _renoised(denoised, context, fresh, fresh), state


@dataclass(frozen=True)
class DDPM(OneEvaluation):
    """Ancestral sampling.

    Attributes:
        variance: `small` is that of the posterior given `x0`, `large` that of the forward
            step; the last step of a frame adds no noise.

    Reference: Ho et al., arXiv:2006.11239, algorithm 2 and section 3.2.
    """

    variance: Literal["small", "large"] = "small"

    def move(self, denoised: Denoised, x: Array, state: PyTree, context: Context) -> Moved:
        """Returns the latents at `t_next`."""
        process, small = context.process, _posterior_std(context)
        std = small
        if self.variance == "large":
            # small = sigma_next / sigma * large, by the definition of the posterior.
            std = divide(small * process.sigma(context.t), process.sigma(context.t_next))
        return _renoised(denoised, context, small, std), state


@dataclass(frozen=True)
class Consistency(OneEvaluation):
    """Replaces all noise in every step; for networks that jump to clean data.

    A consistency model must say `x` itself at `t = 0`. Some networks were trained with a mixture
    of `x` and what they say, which ensures that: their clean data are `c_skip x + c_out x0` with
    `c_skip = std^2 / (s^2 + std^2)`, `c_out = s / sqrt(s^2 + std^2)`, `s = scaling * told time`.

    Attributes:
        scaling: `s` per unit of time that the network is told; 0 takes its `x0` as it is, 10 is
            that of the latent consistency models on a table of 1000 steps.
        data_std: `std`.

    Reference: Song et al., arXiv:2303.01469, algorithm 1; the mixture: Luo et al.,
    arXiv:2310.04378, and the scheduler that came with it.
    """

    scaling: float = 0.0
    data_std: float = 0.5

    def move(self, denoised: Denoised, x: Array, state: PyTree, context: Context) -> Moved:
        """Returns the latents at `t_next`."""
        process, x0 = context.process, denoised.x0
        if self.scaling:
            s = self.scaling * process.model_time(context.t)
            norm = s**2 + self.data_std**2
            x0 = mix(self.data_std**2 / norm, s / jnp.sqrt(norm), x, x0)
        return corrupt(process, x0, context.t_next, context.noise(0)), state


def _posterior_std(context: Context) -> NoiseLevels:
    """Returns the standard deviation of `x_next` given `x` and `x0`."""
    process, t, t_next = context.process, context.t, context.t_next
    sigma, sigma_next = process.sigma(t), process.sigma(t_next)
    ratio = process.alpha(t) * sigma_next / (process.alpha(t_next) * sigma)
    return sigma_next * jnp.sqrt(jnp.maximum(1.0 - ratio**2, 0.0))


def _renoised(
    denoised: Denoised, context: Context, replaced: NoiseLevels, std: NoiseLevels
) -> Array:
    """Returns `x_next` with noise of `std` instead of a part of deviation `replaced` of its own."""
    process, t_next = context.process, context.t_next
    kept = jnp.sqrt(jnp.maximum(process.sigma(t_next) ** 2 - replaced**2, 0.0))
    mean = mix(process.alpha(t_next), kept, denoised.x0, denoised.eps)
    return mean + expand(std, mean) * context.noise(0)
