"""Noise schedules of published models, as processes.

Models that were trained on `n` discrete steps have a table: step `k`, counted from 0, is the
level `t = (k + 1) / n` here, so that `t = 0` is clean data and `t = 1` the last step.
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float
from jvdm.errors import ConfigError
from jvdm.samplers.process import Bound, Process, divide
from jvdm.values import recipe


@dataclass(frozen=True)
class _Table:
    """The recipe of a variance preserving table; its arrays are made where they are used."""

    kind: Literal["linear", "scaled linear", "cosine"]
    first: float
    last: float
    steps: int
    zero_terminal: bool = False


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
    alphas = np.sqrt(np.cumprod(1 - betas))
    if table.zero_terminal:
        # Lin et al., arXiv:2305.08891, algorithm 1.
        alphas = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
    alphas = np.concatenate([[1.0], alphas])
    sigmas = np.sqrt(1 - alphas**2)
    with np.errstate(divide="ignore"):
        return np.arctan2(sigmas, alphas), np.log(alphas) - np.log(sigmas)


def _cell(table: _Table, t: Array) -> tuple[Array, Array]:
    """Returns the table's interval `[k, k + 1]` that holds `t`, and the place in it, 0 to 1."""
    place = t * table.steps
    nearest = jnp.round(place)
    # Levels made from step numbers are those steps, whatever rounding did to them.
    place = jnp.where(jnp.abs(place - nearest) < 2e-4, nearest, place)
    k = jnp.clip(jnp.floor(place), 0, table.steps - 1)
    return k.astype(jnp.int32), place - k


def _angle(t: Array, table: _Table) -> tuple[Array, Array]:
    """Returns `atan(sigma / alpha)` and its derivative.

    Between steps `lambda` is linear, as in k-diffusion; where it is infinite at one end,
    at clean data and at a zero terminal signal, the angle is linear instead.
    """
    angles, lams = _angles_and_lams(table)
    k, share = _cell(table, t)
    finite = np.isfinite(lams[:-1]) & np.isfinite(lams[1:])
    safe = np.where(np.isfinite(lams), lams, 0.0)
    start, gain = jnp.asarray(angles[:-1], t.dtype)[k], jnp.asarray(np.diff(angles), t.dtype)[k]
    first, slope = jnp.asarray(safe[:-1], t.dtype)[k], jnp.asarray(np.diff(safe), t.dtype)[k]
    by_lam = jnp.arctan(jnp.exp(-(first + slope * share)))
    # d angle / d lambda = -sin cos.
    by_lam_slope = -0.5 * jnp.sin(2 * by_lam) * slope
    use_lam = jnp.asarray(finite)[k]
    angle = jnp.where(use_lam, by_lam, start + gain * share)
    return angle, jnp.where(use_lam, by_lam_slope, gain) * table.steps


def _table_alpha(t: Array, table: _Table) -> Array:
    angle = _angle(t, table)[0]
    # The right angle is rounded, and with it its cosine.
    almost_right = math.pi / 2 - 4 * jnp.finfo(t.dtype).eps
    return jnp.where(angle >= almost_right, 0.0, jnp.cos(angle))


def _table_sigma(t: Array, table: _Table) -> Array:
    return jnp.sin(_angle(t, table)[0])


def _table_d_alpha(t: Array, table: _Table) -> Array:
    angle, slope = _angle(t, table)
    return -jnp.sin(angle) * slope


def _table_d_sigma(t: Array, table: _Table) -> Array:
    angle, slope = _angle(t, table)
    return jnp.cos(angle) * slope


def _table_lam(t: Array, table: _Table) -> Array:
    return jnp.log(_table_alpha(t, table)) - jnp.log(_table_sigma(t, table))


def _table_inv_lam(lam: Array, table: _Table) -> Array:
    angles, lams = _angles_and_lams(table)
    angle = jnp.arctan(jnp.exp(-lam))
    known = jnp.asarray(angles, lam.dtype)
    k = jnp.clip(jnp.searchsorted(known, angle, side="right") - 1, 0, table.steps - 1)
    finite = np.isfinite(lams[:-1]) & np.isfinite(lams[1:])
    safe = np.where(np.isfinite(lams), lams, 0.0)
    first, slope = jnp.asarray(safe[:-1], lam.dtype)[k], jnp.asarray(np.diff(safe), lam.dtype)[k]
    by_lam = divide(lam - first, slope)
    by_angle = (angle - known[k]) / jnp.asarray(np.diff(angles), lam.dtype)[k]
    return (k + jnp.where(jnp.asarray(finite)[k], by_lam, by_angle)) / table.steps


def _step(t: Array, table: _Table) -> Array:
    """Returns the step that the network is told; clean data count as step 0."""
    k, share = _cell(table, t)
    return jnp.maximum(k + share - 1.0, 0.0)


def _from_table(table: _Table) -> Process:
    return Process(
        alpha=Bound(_table_alpha, table),
        sigma=Bound(_table_sigma, table),
        d_alpha=Bound(_table_d_alpha, table),
        d_sigma=Bound(_table_d_sigma, table),
        lam=Bound(_table_lam, table),
        inv_lam=Bound(_table_inv_lam, table),
        t_max=1.0,
        model_time=Bound(_step, table),
    )


@recipe
def vp_linear(beta_0: float = 1e-4, beta_1: float = 0.02, steps: int = 1000) -> Process:
    """Variance preserving, `beta` linear in the step (Ho et al., arXiv:2006.11239).

    The network is told the step, `0 .. steps - 1`.
    """
    return _from_table(_Table("linear", beta_0, beta_1, steps))


@recipe
def vp_scaled_linear(beta_0: float = 0.00085, beta_1: float = 0.012, steps: int = 1000) -> Process:
    """Variance preserving, the root of `beta` linear in the step: Stable Diffusion, CogVideoX."""
    return _from_table(_Table("scaled linear", beta_0, beta_1, steps))


@recipe
def vp_cosine_table(s: float = 0.008, beta_max: float = 0.999, steps: int = 1000) -> Process:
    """The cosine schedule in discrete steps, with the cap on `beta` of its authors.

    Reference: Nichol and Dhariwal, arXiv:2102.09672, equation 17; `vp_cosine` is its limit
    of many steps.
    """
    return _from_table(_Table("cosine", s, beta_max, steps))


@recipe
def zero_terminal_snr(process: Process) -> Process:
    """Returns a table with its shares of data stretched so that the last step is pure noise.

    Raises:
        ConfigError: If `process` has no table (`vp_linear`, `vp_scaled_linear`,
            `vp_cosine_table`); the continuous ones end at noise already or never do.

    Reference: Lin et al., arXiv:2305.08891, algorithm 1.
    """
    table = process.alpha.parameter if isinstance(process.alpha, Bound) else None
    if not isinstance(table, _Table):
        raise ConfigError(
            "a process without a table of steps is to get zero terminal signal",
            "the rule of arXiv:2305.08891 rescales a table",
            "use vp_linear, vp_scaled_linear or vp_cosine_table",
        )
    return replace(
        _from_table(replace(table, zero_terminal=True)),
        data_std=process.data_std,
        scale_input=process.scale_input,
    )


@dataclass(frozen=True)
class _Slope:
    """`beta(t) = low + rise t` of a continuous variance preserving process."""

    low: float
    rise: float


def _log_alpha(t: Array, beta: _Slope) -> Array:
    return -0.5 * beta.low * t - 0.25 * beta.rise * t**2


def _continuous_alpha(t: Array, beta: _Slope) -> Array:
    return jnp.exp(_log_alpha(t, beta))


def _continuous_sigma(t: Array, beta: _Slope) -> Array:
    return jnp.sqrt(-jnp.expm1(2 * _log_alpha(t, beta)))


def _continuous_d_alpha(t: Array, beta: _Slope) -> Array:
    return -0.5 * (beta.low + beta.rise * t) * _continuous_alpha(t, beta)


def _continuous_d_sigma(t: Array, beta: _Slope) -> Array:
    slope = -_continuous_alpha(t, beta) * _continuous_d_alpha(t, beta)
    return divide(slope, _continuous_sigma(t, beta))


def _continuous_lam(t: Array, beta: _Slope) -> Array:
    return _log_alpha(t, beta) - jnp.log(_continuous_sigma(t, beta))


def _continuous_inv_lam(lam: Array, beta: _Slope) -> Array:
    # The stable root of rise/4 t^2 + low/2 t + log(alpha) = 0.
    log_alpha = 0.5 * jax.nn.log_sigmoid(2 * lam)
    root = jnp.sqrt(0.25 * beta.low**2 - beta.rise * log_alpha)
    return -2.0 * log_alpha / (root + 0.5 * beta.low)


@recipe
def vp_continuous(beta_min: float = 0.1, beta_d: float = 19.9) -> Process:
    """Variance preserving in continuous time, `beta(t) = beta_min + beta_d t`.

    Its noisiest level keeps a little data: `alpha(1)` is 0.0066 with the defaults.

    Reference: Song et al., arXiv:2011.13456, equation 33.
    """
    beta = _Slope(beta_min, beta_d)
    return Process(
        alpha=Bound(_continuous_alpha, beta),
        sigma=Bound(_continuous_sigma, beta),
        d_alpha=Bound(_continuous_d_alpha, beta),
        d_sigma=Bound(_continuous_d_sigma, beta),
        lam=Bound(_continuous_lam, beta),
        inv_lam=Bound(_continuous_inv_lam, beta),
        t_max=1.0,
        model_time=_identity,
        singular_at_zero=True,
    )


def _identity(t: Array) -> Array:
    return t


def _quarter_turn(t: Array) -> Array:
    return (math.pi / 2) * t


def _cosine(t: Array) -> Array:
    return jnp.where(t == 1, 0.0, jnp.cos(_quarter_turn(t)))


def _sine(t: Array) -> Array:
    return jnp.sin(_quarter_turn(t))


def _minus_sine(t: Array) -> Array:
    return -(math.pi / 2) * _sine(t)


def _plus_cosine(t: Array) -> Array:
    return (math.pi / 2) * _cosine(t)


def _trig_lam(t: Array) -> Array:
    return jnp.log(_cosine(t)) - jnp.log(_sine(t))


def _trig_inv_lam(lam: Array) -> Array:
    return jnp.arctan(jnp.exp(-lam)) * (2 / math.pi)


@recipe
def trig_flow(data_std: float = 1.0) -> Process:
    """A quarter of a circle: `alpha = cos(pi t / 2)`, `sigma = sin(pi t / 2)`.

    The network is told the angle. Data of another standard deviation than 1 are divided by
    it beforehand.

    Reference: Lu and Song, arXiv:2410.11081, where the angle itself is called `t`.
    """
    return Process(
        alpha=_cosine,
        sigma=_sine,
        d_alpha=_minus_sine,
        d_sigma=_plus_cosine,
        lam=_trig_lam,
        inv_lam=_trig_inv_lam,
        t_max=1.0,
        model_time=_quarter_turn,
        data_std=data_std,
    )


def _minus_log(t: Array) -> Array:
    return -jnp.log(t)


def _inverse_minus_log(lam: Array) -> Array:
    return jnp.exp(-lam)


def _quarter_log(t: Array) -> Array:
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
    return Process(
        alpha=jnp.ones_like,
        sigma=_identity,
        d_alpha=jnp.zeros_like,
        d_sigma=jnp.ones_like,
        lam=_minus_log,
        inv_lam=_inverse_minus_log,
        t_max=t_max,
        model_time=_quarter_log,
        data_std=data_std,
        scale_input=True,
    )


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


def spaced_steps(
    num_steps: int, spacing: Literal["trailing", "leading", "linspace"], table_steps: int = 1000
) -> list[int]:
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
