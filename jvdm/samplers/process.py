"""The corruption process `x_t = alpha(t) x0 + sigma(t) eps` and its conversions.

`t` is the noise level, 1 = noise and 0 = clean, one per latent frame. What a network
predicts is always a combination `c x0 + d eps`; together with `x_t` this is a 2x2
linear system per element, so one solve converts every kind of prediction.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Shaped

from jvdm.arrays import Array, Float, NoiseLevels
from jvdm.values import recipe

LevelFunction = Callable[[Array], Array]
"""An element-wise function of the noise level or of `lambda`."""

Values = Float[Array, "B F ..."]
"""Data, noise, a mixture of both or a prediction: anything per latent frame."""

PredictionKind = Literal["velocity", "x0", "eps", "v", "score", "edm"]
"""What a network predicts.

`velocity`: `alpha' x0 + sigma' eps`; `v`: `alpha eps - sigma x0`; `score`: `-eps / sigma`; `edm`:
the network `F` of Karras et al. (arXiv:2206.00364, equation 7) for data of deviation `data_std`.
"""


def _identity(t: Array) -> Array:
    return t


@dataclass(frozen=True)
class Process:
    """How data turns into noise; hashable, so it can be a static argument of jit.

    A subclass has the element-wise functions of the level that are declared here; those that
    are written out hold for any process with `alpha^2 + sigma^2 = 1`. Two processes are equal
    when they are of one class and built from equal parts.

    Attributes:
        told: What the network is told instead of `t`, unless `model_time` says otherwise.
        t_max: The noisiest level.
        singular_at_zero: Whether `sigma'` grows without bound at `t = 0`. Solvers then
            take `x0` for the last step instead of a step along the velocity.
        data_std: Standard deviation of the data, for the prediction `edm`.
        scale_input: Whether the network is fed `x_t / sqrt(alpha^2 data_std^2 + sigma^2)`,
            of unit variance, instead of `x_t`.
        conditioned: Whether the network is fed `x_t + pull(t) c`, with a condition `c`.
        recipe: The function that made the process, with its arguments (`jvdm.values`).
    """

    told: LevelFunction = _identity
    t_max: float = 1.0
    singular_at_zero: bool = False
    data_std: float = 1.0
    scale_input: bool = False
    conditioned: bool = False
    recipe: Any = field(default=None, compare=False)

    def alpha(self, t: Array) -> Array:
        """Returns the share of data in `x_t`."""
        raise NotImplementedError

    def sigma(self, t: Array) -> Array:
        """Returns the share of noise in `x_t`."""
        raise NotImplementedError

    def d_alpha(self, t: Array) -> Array:
        """Returns the derivative of `alpha`."""
        raise NotImplementedError

    def d_sigma(self, t: Array) -> Array:
        """Returns the derivative of `sigma`; 0 at `t = 0` where `singular_at_zero`."""
        return divide(-self.alpha(t) * self.d_alpha(t), self.sigma(t))

    def lam(self, t: Array) -> Array:
        """Returns half the log signal-to-noise ratio `log(alpha / sigma)`, infinite at the ends."""
        return jnp.log(self.alpha(t)) - jnp.log(self.sigma(t))

    def inv_lam(self, lam: Array) -> Array:
        """Returns the level with a given `lam`."""
        raise NotImplementedError

    def pull(self, t: Array) -> Array:
        """Returns the share of the condition in what the network is fed, if `conditioned`."""
        return jnp.zeros_like(t)

    def model_time(self, t: Array) -> Array:
        """Returns what the network is told instead of `t`."""
        return self.told(t)


class _RectifiedFlow(Process):
    def alpha(self, t: Array) -> Array:
        return 1.0 - t

    def sigma(self, t: Array) -> Array:
        return t

    def d_alpha(self, t: Array) -> Array:
        return -jnp.ones_like(t)

    def d_sigma(self, t: Array) -> Array:
        return jnp.ones_like(t)

    def lam(self, t: Array) -> Array:
        return jnp.log1p(-t) - jnp.log(t)

    def inv_lam(self, lam: Array) -> Array:
        return jax.nn.sigmoid(-lam)


@recipe
def rectified_flow(model_time: LevelFunction = _identity) -> Process:
    """Straight lines from data to noise: `alpha = 1 - t`, `sigma = t`, velocity `eps - x0`.

    Reference: Liu et al., arXiv:2209.03003; Lipman et al., arXiv:2210.02747.
    """
    return _RectifiedFlow(model_time)


@dataclass(frozen=True)
class _Cosine(Process):
    """In angles: `alpha = cos(start + a) / cos(start)`, `a = rate t`.

    The products of sines below say the same without the cancellation of `1 - alpha^2` near
    `t = 0` and of the cosine near `t = 1`, so the ends are exact.
    """

    s: float = 0.008

    @property
    def _rate(self) -> float:
        return math.pi / 2 / (1 + self.s)

    @property
    def _start(self) -> float:
        return self.s * self._rate

    def alpha(self, t: Array) -> Array:
        alpha = jnp.sin(self._rate * (1.0 - t)) / math.cos(self._start)
        return jnp.where(t == 0, 1.0, alpha)

    def sigma(self, t: Array) -> Array:
        angle = self._rate * t
        variance = jnp.sin(angle) * jnp.sin(angle + 2 * self._start)
        return jnp.sqrt(variance) / math.cos(self._start)

    def d_alpha(self, t: Array) -> Array:
        return -self._rate * jnp.cos(self._rate * (1.0 - t)) / math.cos(self._start)

    def inv_lam(self, lam: Array) -> Array:
        alpha = jnp.sqrt(jax.nn.sigmoid(2 * lam))
        variance = jax.nn.sigmoid(-2 * lam)
        cosine, sine = math.cos(self._start), math.sin(self._start)
        angle = jnp.arctan2(jnp.sqrt(sine**2 + cosine**2 * variance), cosine * alpha)
        return (angle - self._start) / self._rate


@recipe
def vp_cosine(s: float = 0.008, model_time: LevelFunction = _identity) -> Process:
    """Variance preserving, `alpha` a cosine in continuous time.

    Args:
        s: Offset that keeps the first steps from being too small; positive.
        model_time: What the network is told instead of `t`.

    Reference: Nichol and Dhariwal, arXiv:2102.09672, equation 17, without their cap on
    the last step, so `alpha(1)` is 0.
    """
    return _Cosine(model_time, singular_at_zero=True, s=s)


def divide(numerator: Array, denominator: Array) -> Array:
    """Returns the quotient, and 0 where the denominator is 0, with finite gradients."""
    is_zero = denominator == 0
    return jnp.where(is_zero, 0.0, numerator / jnp.where(is_zero, 1.0, denominator))


def expand(t: Shaped[Array, "..."], x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """Appends axes of size 1 to `t` until it has as many axes as `x`."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def corrupt(process: Process, x0: Values, t: NoiseLevels, eps: Values) -> Values:
    """Returns `x_t`, data `x0` with the share of noise `eps` that belongs to level `t`."""
    return mix(process.alpha(t), process.sigma(t), x0, eps)


def from_x0_eps(
    process: Process, kind: PredictionKind, x0: Values, eps: Values, t: NoiseLevels
) -> Values:
    """Returns what a network that predicts `kind` should have said."""
    return mix(*_shares(process, kind, t), x0, eps)


def mix(share_x0: NoiseLevels, share_eps: NoiseLevels, x0: Values, eps: Values) -> Values:
    """Returns `share_x0 x0 + share_eps eps` with one share per frame."""
    return expand(share_x0, x0) * x0 + expand(share_eps, x0) * eps


def to_x0_eps(
    process: Process, kind: PredictionKind, prediction: Values, x: Values, t: NoiseLevels
) -> tuple[Values, Values]:
    """Splits a prediction made at `x_t` into clean data and noise.

    Args:
        process: The corruption process.
        kind: What `prediction` is.
        prediction: The network's output.
        x: The network's input `x_t`.
        t: The level of each frame; 0 and 1 are legal.

    Returns:
        `(x0, eps)`. A clean frame is its own `x0`. Where the prediction does not
        determine a value (`eps` at `t = 0` from `x0`, `x0` at `t = 1` from `eps`), it
        is 0, the mean of standardised data and of noise.
    """
    alpha, sigma = expand(process.alpha(t), x), expand(process.sigma(t), x)
    if kind == "x0":
        return prediction, divide(x - alpha * prediction, sigma)
    if kind in ("eps", "score"):
        eps = prediction if kind == "eps" else -sigma * prediction
        return divide(x - sigma * eps, alpha), eps
    share_x0, share_eps = (expand(share, x) for share in _shares(process, kind, t))
    determinant = alpha * share_eps - sigma * share_x0
    x0 = divide(share_eps * x - sigma * prediction, determinant)
    eps = divide(alpha * prediction - share_x0 * x, determinant)
    return jnp.where(sigma == 0, divide(x, alpha), x0), eps


def _shares(
    process: Process, kind: PredictionKind, t: NoiseLevels
) -> tuple[NoiseLevels, NoiseLevels]:
    """Returns `c, d` of the prediction `c x0 + d eps`."""
    if kind == "velocity":
        return process.d_alpha(t), process.d_sigma(t)
    if kind == "v":
        return -process.sigma(t), process.alpha(t)
    if kind == "score":
        return jnp.zeros_like(t), divide(-jnp.ones_like(t), process.sigma(t))
    if kind == "edm":
        alpha, sigma, std = process.alpha(t), process.sigma(t), process.data_std
        norm = jnp.sqrt((alpha * std) ** 2 + sigma**2)
        return sigma / (std * norm), -alpha * std / norm
    one, zero = jnp.ones_like(t), jnp.zeros_like(t)
    return (one, zero) if kind == "x0" else (zero, one)
