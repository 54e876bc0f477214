"""Problems with known answers, for the sampler tests.

Every frame is a set of independent numbers, drawn from a mixture of normal distributions.
The best denoiser is then known, and since the flow in one dimension keeps quantiles, so is
the point that every noise value must end at.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr

from jvdm.samplers import Denoised, corrupt
from jvdm.samplers.process import Process, expand
from jvdm.samplers.solvers import Stepped

MEANS = np.array([-0.8, 0.2, 1.1])
STDS = np.array([0.5, 0.6, 0.4])
SHARES = np.array([0.3, 0.3, 0.4])


def mixture_denoiser(process: Process):
    """Returns the exact denoiser; it treats all numbers alike and mixes nothing."""

    def denoise(x, call, carry):
        t = call.t
        alpha, sigma = expand(process.alpha(t), x), expand(process.sigma(t), x)
        densities, weighted = jnp.zeros_like(x), jnp.zeros_like(x)
        for share, mean, std in zip(SHARES, MEANS, STDS, strict=True):
            variance = (alpha * std) ** 2 + sigma**2
            offset = x - alpha * mean
            density = share * jnp.exp(-0.5 * offset**2 / variance) / jnp.sqrt(variance)
            densities = densities + density
            weighted = weighted + density * (mean + alpha * std**2 / variance * offset)
        x0 = weighted / densities
        eps = (x - alpha * x0) / jnp.where(sigma == 0, 1.0, sigma)
        return Denoised(x0, eps), carry

    return denoise


def mixture_end(noise: np.ndarray, alpha: float = 1.0, sigma: float = 0.0) -> np.ndarray:
    """Returns where the exact flow takes starting noise, at the level of `alpha, sigma`."""
    target = ndtr(noise.astype(np.float64))
    low, high = np.full(noise.shape, -10.0), np.full(noise.shape, 10.0)
    spreads = np.sqrt((alpha * STDS) ** 2 + sigma**2)
    for _ in range(60):
        middle = (low + high) / 2
        share = ndtr((middle[..., None] - alpha * MEANS) / spreads) @ SHARES
        low, high = np.where(share < target, middle, low), np.where(share < target, high, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class NoisyAverage:
    """A solver with all that a solver may have: history, fresh noise, an order counter.

    It noises the mean of the last two estimates of the clean data again.
    """

    evaluations = 1

    def init(self, x):
        """Returns the last estimate, of no meaning before the first step."""
        return jnp.zeros_like(x)

    def step(self, x, state, context):
        """Moves every frame from its level `context.t` to `context.t_next`."""
        denoised, context = context.ask(x)
        first = expand(context.updates, x) == 0
        x0 = jnp.where(first, denoised.x0, 0.5 * (denoised.x0 + state))
        x_next = corrupt(context.process, x0, context.t_next, context.noise(0))
        return Stepped(x_next, denoised.x0, context.carry)


def noise_like(shape, seed: int = 0):
    """Returns float32 standard normal values."""
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32)
