"""Noise schedules of published models, as processes.

Models that were trained on `n` discrete steps have a table: step `k`, counted from 0, is the
level `t = (k + 1) / n` here, so that `t = 0` is clean data and `t = 1` the last step.
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float
from jvdm.errors import ConfigError
from jvdm.samplers.process import Process, divide
from jvdm.values import recipe

Spacing = Literal["trailing", "leading", "linspace"]
"""Which steps of a table are visited; `spaced_steps` says what each is."""


@dataclass(frozen=True)
class _Table(Process):
    """A variance preserving table; its arrays are made where they are used."""

    kind: Literal["linear", "scaled linear", "cosine"] = "linear"
    first: float = 0.0
    last: float = 0.0
    steps: int = 1000
    snr_shift: float = 1.0
    zero_terminal: bool = False

    def alpha(self, t: Array) -> Array:
        angle = self._angle(t)[0]
        # The right angle is rounded, and with it its cosine.
        almost_right = math.pi / 2 - 4 * jnp.finfo(t.dtype).eps
        return jnp.where(angle >= almost_right, 0.0, jnp.cos(angle))

    def sigma(self, t: Array) -> Array:
        return jnp.sin(self._angle(t)[0])

    def d_alpha(self, t: Array) -> Array:
        angle, slope = self._angle(t)
        return -jnp.sin(angle) * slope

    def d_sigma(self, t: Array) -> Array:
        angle, slope = self._angle(t)
        return jnp.cos(angle) * slope

    def inv_lam(self, lam: Array) -> Array:
        angles, lams = _angles_and_lams(self)
        angle = jnp.arctan(jnp.exp(-lam))
        known = jnp.asarray(angles, lam.dtype)
        k = jnp.clip(jnp.searchsorted(known, angle, side="right") - 1, 0, self.steps - 1)
        finite, first, slope = _cells(lams, k, lam.dtype)
        by_lam = divide(lam - first, slope)
        by_angle = (angle - known[k]) / jnp.asarray(np.diff(angles), lam.dtype)[k]
        return (k + jnp.where(finite, by_lam, by_angle)) / self.steps

    def model_time(self, t: Array) -> Array:
        """Returns the step that the network is told; clean data count as step 0."""
        k, share = self._cell(t)
        return jnp.maximum(k + share - 1.0, 0.0)

    def _cell(self, t: Array) -> tuple[Array, Array]:
        """Returns the interval `[k, k + 1]` that holds `t`, and the place in it, 0 to 1."""
        place = t * self.steps
        nearest = jnp.round(place)
        # Levels made from step numbers are those steps, whatever rounding did to them.
        place = jnp.where(jnp.abs(place - nearest) < 2e-4, nearest, place)
        k = jnp.clip(jnp.floor(place), 0, self.steps - 1)
        return k.astype(jnp.int32), place - k

    def _angle(self, t: Array) -> tuple[Array, Array]:
        """Returns `atan(sigma / alpha)` and its derivative.

        Between steps `lambda` is linear, as in k-diffusion; where it is infinite at one end,
        at clean data and at a zero terminal signal, the angle is linear instead.
        """
        angles, lams = _angles_and_lams(self)
        k, share = self._cell(t)
        start, gain = jnp.asarray(angles[:-1], t.dtype)[k], jnp.asarray(np.diff(angles), t.dtype)[k]
        use_lam, first, slope = _cells(lams, k, t.dtype)
        by_lam = jnp.arctan(jnp.exp(-(first + slope * share)))
        # d angle / d lambda = -sin cos.
        by_lam_slope = -0.5 * jnp.sin(2 * by_lam) * slope
        angle = jnp.where(use_lam, by_lam, start + gain * share)
        return angle, jnp.where(use_lam, by_lam_slope, gain) * self.steps


@functools.lru_cache(maxsize=32)
def _angles_and_lams(table: _Table) -> tuple[np.ndarray, np.ndarray]:
    """Returns `atan(sigma / alpha)` and `log(alpha / sigma)` of steps 0..n, step 0 clean."""
    if table.kind == "cosine":
        place = np.arange(table.steps + 1) / table.steps
        kept = np.cos((place + table.first) / (1 + table.first) * np.pi / 2) ** 2
        betas = np.minimum(1 - kept[1:] / kept[:-1], table.last)
    elif table.kind == "linear":
        betas = np.linspace(table.first, table.last, table.steps)
    else:
        betas = np.linspace(table.first**0.5, table.last**0.5, table.steps) ** 2
    kept = np.cumprod(1 - betas)
    alphas = np.sqrt(kept / (table.snr_shift + (1 - table.snr_shift) * kept))
    if table.zero_terminal:
        # Lin et al., arXiv:2305.08891, algorithm 1.
        alphas = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
    alphas = np.concatenate([[1.0], alphas])
    sigmas = np.sqrt(1 - alphas**2)
    with np.errstate(divide="ignore"):
        return np.arctan2(sigmas, alphas), np.log(alphas) - np.log(sigmas)


def _cells(lams: np.ndarray, k: Array, dtype: Any) -> tuple[Array, Array, Array]:
    """Returns whether `lambda` is finite at both ends of intervals, its start and its gain."""
    finite = np.isfinite(lams[:-1]) & np.isfinite(lams[1:])
    safe = np.where(np.isfinite(lams), lams, 0.0)
    first, slope = jnp.asarray(safe[:-1], dtype)[k], jnp.asarray(np.diff(safe), dtype)[k]
    return jnp.asarray(finite)[k], first, slope


@recipe
def vp_linear(beta_0: float = 1e-4, beta_1: float = 0.02, steps: int = 1000) -> Process:
    """Variance preserving, `beta` linear in the step (Ho et al., arXiv:2006.11239).

    The network is told the step, `0 .. steps - 1`.
    """
    return _Table(kind="linear", first=beta_0, last=beta_1, steps=steps)


@recipe
def vp_scaled_linear(
    beta_0: float = 0.00085, beta_1: float = 0.012, steps: int = 1000, snr_shift: float = 1.0
) -> Process:
    """Variance preserving, the root of `beta` linear in the step: Stable Diffusion, CogVideoX.

    Args:
        beta_0: First `beta`.
        beta_1: Last one.
        steps: Length of the table.
        snr_shift: What the signal-to-noise ratios are divided by: 3 in CogVideoX-2B, 1 in 5B.
    """
    return _Table(kind="scaled linear", first=beta_0, last=beta_1, steps=steps, snr_shift=snr_shift)


@recipe
def vp_cosine_table(s: float = 0.008, beta_max: float = 0.999, steps: int = 1000) -> Process:
    """The cosine schedule in discrete steps, with the cap on `beta` of its authors.

    Reference: Nichol and Dhariwal, arXiv:2102.09672, equation 17; `vp_cosine` is its limit
    of many steps.
    """
    return _Table(kind="cosine", first=s, last=beta_max, steps=steps)


@recipe
def zero_terminal_snr(process: Process) -> Process:
    """Returns a table with its shares of data stretched so that the last step is pure noise.

    Raises:
        ConfigError: If `process` has no table (`vp_linear`, `vp_scaled_linear`,
            `vp_cosine_table`); the continuous ones end at noise already or never do.

    Reference: Lin et al., arXiv:2305.08891, algorithm 1.
    """
    if not isinstance(process, _Table):
        raise ConfigError(
            "a process without a table of steps is to get zero terminal signal",
            "the rule of arXiv:2305.08891 rescales a table",
            "use vp_linear, vp_scaled_linear or vp_cosine_table",
        )
    return replace(process, zero_terminal=True)


@dataclass(frozen=True)
class _Continuous(Process):
    """`beta(t) = low + rise t`, variance preserving."""

    low: float = 0.0
    rise: float = 0.0

    def _log_alpha(self, t: Array) -> Array:
        return -0.5 * self.low * t - 0.25 * self.rise * t**2

    def alpha(self, t: Array) -> Array:
        return jnp.exp(self._log_alpha(t))

    def sigma(self, t: Array) -> Array:
        return jnp.sqrt(-jnp.expm1(2 * self._log_alpha(t)))

    def d_alpha(self, t: Array) -> Array:
        return -0.5 * (self.low + self.rise * t) * self.alpha(t)

    def lam(self, t: Array) -> Array:
        return self._log_alpha(t) - jnp.log(self.sigma(t))

    def inv_lam(self, lam: Array) -> Array:
        # The stable root of rise/4 t^2 + low/2 t + log(alpha) = 0.
        log_alpha = 0.5 * jax.nn.log_sigmoid(2 * lam)
        root = jnp.sqrt(0.25 * self.low**2 - self.rise * log_alpha)
        return -2.0 * log_alpha / (root + 0.5 * self.low)


@recipe
def vp_continuous(beta_min: float = 0.1, beta_d: float = 19.9) -> Process:
    """Variance preserving in continuous time, `beta(t) = beta_min + beta_d t`.

    Its noisiest level keeps a little data: `alpha(1)` is 0.0066 with the defaults.

    Reference: Song et al., arXiv:2011.13456, equation 33.
    """
    return _Continuous(singular_at_zero=True, low=beta_min, rise=beta_d)


class _Trig(Process):
    def alpha(self, t: Array) -> Array:
        return jnp.where(t == 1, 0.0, jnp.cos(self.model_time(t)))

    def sigma(self, t: Array) -> Array:
        return jnp.sin(self.model_time(t))

    def d_alpha(self, t: Array) -> Array:
        return -(math.pi / 2) * self.sigma(t)

    def d_sigma(self, t: Array) -> Array:
        return (math.pi / 2) * self.alpha(t)

    def inv_lam(self, lam: Array) -> Array:
        return jnp.arctan(jnp.exp(-lam)) * (2 / math.pi)

    def model_time(self, t: Array) -> Array:
        return (math.pi / 2) * t


@recipe
def trig_flow(data_std: float = 1.0) -> Process:
    """A quarter of a circle: `alpha = cos(pi t / 2)`, `sigma = sin(pi t / 2)`.

    The network is told the angle. Data of another standard deviation than 1 are divided by
    it beforehand.

    Reference: Lu and Song, arXiv:2410.11081, where the angle itself is called `t`.
    """
    return _Trig(data_std=data_std)


class _Edm(Process):
    def alpha(self, t: Array) -> Array:
        return jnp.ones_like(t)

    def sigma(self, t: Array) -> Array:
        return t

    def d_alpha(self, t: Array) -> Array:
        return jnp.zeros_like(t)

    def d_sigma(self, t: Array) -> Array:
        return jnp.ones_like(t)

    def lam(self, t: Array) -> Array:
        return -jnp.log(t)

    def inv_lam(self, lam: Array) -> Array:
        return jnp.exp(-lam)

    def model_time(self, t: Array) -> Array:
        return 0.25 * jnp.log(jnp.where(t == 0, 1.0, t))


@recipe
def edm(data_std: float = 0.5, t_max: float = 80.0) -> Process:
    """Noise is added and data stay as they are: `alpha = 1`, `sigma = t`, up to `t_max`.

    A run starts from noise times `t_max`. The network is fed `x_t` scaled to unit variance
    and told `log(t) / 4`; with the prediction `edm` this is the preconditioning of the paper.

    Args:
        data_std: Standard deviation of the data.
        t_max: The noisiest level.

    Reference: Karras et al., arXiv:2206.00364, table 1.
    """
    return _Edm(t_max=t_max, data_std=data_std, scale_input=True)


def step_levels(
    steps: Float[np.ndarray, " S"] | list[int], table_steps: int = 1000
) -> Float[Array, " levels"]:
    """Returns the grid that visits steps of a table, descending, and ends clean.

    Args:
        steps: Steps `0 .. table_steps - 1`, as `spaced_steps` or a scheduler gives them.
        table_steps: Length of the table.
    """
    levels = (np.asarray(steps, np.float64) + 1.0) / table_steps
    return jnp.asarray(np.append(levels, 0.0), jnp.float32)


def spaced_steps(num_steps: int, spacing: Spacing, table_steps: int = 1000) -> list[int]:
    """Returns `num_steps` steps of a table, from noise to data.

    Args:
        num_steps: Number of denoising steps, at most `table_steps`.
        spacing: `trailing` begins at the last step, which a zero terminal signal needs;
            `leading` ends at step 0; `linspace` has both. All as in Diffusers, without its
            `steps_offset`.
        table_steps: Length of the table.

    Raises:
        ConfigError: If there are more steps than entries, or none.

    Reference: Lin et al., arXiv:2305.08891, table 2.
    """
    if not 1 <= num_steps <= table_steps:
        raise ConfigError(
            f"{num_steps} steps on a table of {table_steps}", "", f"use 1 to {table_steps}"
        )
    if spacing == "linspace":
        found = np.linspace(0, table_steps - 1, num_steps).round()[::-1]
    elif spacing == "leading":
        found = (np.arange(num_steps) * (table_steps // num_steps))[::-1]
    else:
        found = np.round(np.arange(table_steps, 0, -table_steps / num_steps))[:num_steps] - 1
    return [int(step) for step in found]
