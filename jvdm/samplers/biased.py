"""Noise that leads to a condition: a bridge from data to something that is known.

`x_t = alpha(t) ((1 - w(t)) x0 + w(t) c) + sigma(t) eps`, where the share `w` rises from 0 at the
level `low` to 1 at `high`. What is left of `x_t` without the condition, `y_t = x_t - pull(t) c`
with `pull = alpha w`, is an ordinary process. So that is what a run holds: every solver takes `y_t`
along its exact marginals, and only the network is shown `x_t` (`denoiser.ask`).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jvdm.arrays import Array
from jvdm.errors import ConfigError
from jvdm.samplers.process import Process
from jvdm.values import recipe

_HALVINGS = 48  # of the interval that holds a level: more digits than float32 has


@dataclass(frozen=True)
class _Biased(Process):
    inner: Process = Process()
    low: float = 0.0
    high: float = 1.0

    def _kept(self, t: Array) -> Array:
        """Returns `1 - w`, the share of data in what noise is added to."""
        return jnp.clip((self.high - t) / (self.high - self.low), 0.0, 1.0)

    def alpha(self, t: Array) -> Array:
        return self.inner.alpha(t) * self._kept(t)

    def sigma(self, t: Array) -> Array:
        return self.inner.sigma(t)

    def d_alpha(self, t: Array) -> Array:
        # At the kinks the slope is that of the cleaner side, where a step leads.
        slope = jnp.where((t > self.low) & (t <= self.high), 1.0 / (self.low - self.high), 0.0)
        return self.inner.d_alpha(t) * self._kept(t) + self.inner.alpha(t) * slope

    def d_sigma(self, t: Array) -> Array:
        return self.inner.d_sigma(t)

    def inv_lam(self, lam: Array) -> Array:
        def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            clean, noisy = ends
            middle = 0.5 * (clean + noisy)
            below = self.lam(middle) > lam
            return jnp.where(below, middle, clean), jnp.where(below, noisy, middle)

        ends = jnp.zeros_like(lam), jnp.full_like(lam, self.high)
        clean, noisy = jax.lax.fori_loop(0, _HALVINGS, halve, ends)
        return 0.5 * (clean + noisy)

    def pull(self, t: Array) -> Array:
        return self.inner.alpha(t) * (1.0 - self._kept(t))

    def model_time(self, t: Array) -> Array:
        return self.inner.model_time(t)


@recipe
def biased(process: Process, low: float = 0.0, high: float = 1.0) -> Process:
    """Returns `process` with noise that leads to a condition.

    Data and predictions are those of `y_t`: a network that predicts noise or data says the same
    as without a bias. At levels of `high` and above `y_t` is noise alone: a run may begin there,
    and a prediction of noise says nothing of the data.

    Args:
        process: The process without bias.
        low: Level up to which there is no bias; put a level of the grid on it and on `high`,
            where the process has kinks.
        high: Level from which on the condition has replaced the data.

    Raises:
        ConfigError: If the levels are not in order, or outside of the process.

    Reference: UniVG, arXiv:2401.09084, biased Gaussian noise. There a step of DDIM leaves the
    marginals: it moves noise that is biased for one level to another.
    """
    if not 0 <= low < high <= process.t_max:
        raise ConfigError(
            f"noise that is biased from level {low} to {high}",
            f"the levels of the process go from 0 to {process.t_max:g}",
            "use 0 <= low < high",
        )
    return _Biased(
        t_max=process.t_max,
        singular_at_zero=process.singular_at_zero,
        data_std=process.data_std,
        scale_input=process.scale_input,
        conditioned=True,
        inner=process,
        low=low,
        high=high,
    )
