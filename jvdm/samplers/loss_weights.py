"""How much the error of each frame counts in training, by the levels of its clip.

A rule is a frozen object, called as `weights(process, kind, t)` inside the jitted step. What it
returns multiplies the squared error of a prediction of that kind, one number per frame.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, NoiseLevels
from jvdm.errors import ConfigError
from jvdm.samplers.process import PredictionKind, Process, from_x0_eps

MOST_SNR = 1e8  # of a clean frame, whose ratio of signal to noise is infinite


@runtime_checkable
class LossWeights(Protocol):
    """Weighs squared errors of predictions."""

    def __call__(self, process: Process, kind: PredictionKind, t: NoiseLevels) -> NoiseLevels:
        """Returns a weight for every frame; `t` are the levels that they are trained at."""
        ...


@dataclass(frozen=True)
class Unweighted:
    """Every error counts alike."""

    def __call__(self, process: Process, kind: PredictionKind, t: NoiseLevels) -> NoiseLevels:
        """Returns 1 for every frame."""
        return jnp.ones_like(t)


@dataclass(frozen=True)
class FusedSNR:
    """Counts a frame by what is known of it: by itself, and from the frames before it.

    With `s = min(SNR, clip) / clip` of a frame, and a running mean of those of the frames before
    it, `c_f = decay c_(f-1) + (1 - decay) s_f`, the fused ratio is `clip (1 - (1 - decay c_(f-1))
    (1 - s_f))`. An error of the clean data counts as much as that. Other predictions are weighed
    as if their frame had the level of the fused ratio, which leaves out the limit `clip`.

    Attributes:
        decay: How slowly earlier frames are forgotten, 0 to below 1; 0 looks at no other frame
            and is min-SNR (Hang et al., arXiv:2303.09556).
        clip: Ratio from which on all frames count alike; positive.

    Reference: Chen et al., Diffusion Forcing, arXiv:2407.01392, appendix on fused SNR, and its
    published code, which has it for `eps`, `x0` and `v`; other kinds follow from the process.

    Raises:
        ConfigError: If a number lies outside.
    """

    decay: float = 0.96
    clip: float = 5.0

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1 or self.clip <= 0:
            raise ConfigError(
                f"fused SNR with decay {self.decay} and clip {self.clip}",
                "earlier frames count for less and less, and a limit is above 0",
                "use a decay of 0 to below 1, .96 in the paper, and a clip of about 5",
            )

    def __call__(self, process: Process, kind: PredictionKind, t: NoiseLevels) -> NoiseLevels:
        """Returns the fused ratio over the square of what an error of `x0` makes of `kind`."""
        snr = jnp.clip(jnp.exp(2 * process.lam(t)), 1 / MOST_SNR, MOST_SNR) / self.clip
        limited = jnp.minimum(snr, 1.0)
        unknown = 1 - self.decay * self._before(limited)
        fused = jnp.maximum(self.clip * (1 - unknown * (1 - snr)), 1 / MOST_SNR)
        level = process.inv_lam(0.5 * jnp.log(fused))
        ratio = process.alpha(level) / process.sigma(level)
        error = from_x0_eps(process, kind, jnp.ones_like(t), -ratio, level)
        return self.clip * (1 - unknown * (1 - limited)) / jnp.square(error)

    def _before(self, share: NoiseLevels) -> NoiseLevels:
        """Returns the running mean of the frames before each one; 0 before the first."""

        def follow(mean: Array, now: Array) -> tuple[Array, Array]:
            return self.decay * mean + (1 - self.decay) * now, mean

        first, rest = share[:, 0], share[:, 1:].T
        last, before = jax.lax.scan(follow, first, rest)
        means = jnp.concatenate([before, last[None]]).T  # of frames 0 to each one
        return jnp.pad(means[:, :-1], ((0, 0), (1, 0)))
