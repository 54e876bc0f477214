"""Two players whose opinions are exact: the law of clips of two frames is normal, and so is theirs.

Latents are `[B, 2, 1, 1, 1]`. The teacher knows the law of the clips, the second network that of
parameters of its own, `score`, which at zero is the teacher's.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jvdm.experiment import Experiment
from jvdm.keys import named
from jvdm.samplers import Unguided, rectified_flow
from jvdm.samplers.process import expand
from jvdm.samplers.solvers import Consistency
from jvdm.samplers.starts import SegmentStarts
from jvdm.system import Sampling
from jvdm.training.distribution_matching import DistributionMatching
from jvdm.training.optimizer import Optimizer
from jvdm.training.rollouts import Rollout
from tests.training import pair
from tests.training.flow_toy import Untold

MEAN, STD = (
    jnp.asarray(value, jnp.float32).reshape(1, 2, 1, 1, 1) for value in (pair.MEAN, pair.STD)
)
PROCESS = rectified_flow()
LEVELS = tuple(i / 100 for i in range(98, 1, -1))
SAMPLING = Sampling(guidance=Unguided(), solver=Consistency())
SYSTEM = Untold(None, None, None, sampling=SAMPLING)


def seen(mean, std, x, t):
    """Returns the mean of clean clips that `x` at `t` may be made of."""
    alpha, sigma = (expand(of(t), x) for of in (PROCESS.alpha, PROCESS.sigma))
    share = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
    return mean + share * (x - alpha * mean)


@dataclasses.dataclass(frozen=True)
class Normal(DistributionMatching):
    """The objective, whose student shifts and scales noise."""

    system: Any = SYSTEM

    @property
    def taught(self):
        """Levels at which clips are compared."""
        return self.system, SegmentStarts(LEVELS)

    def init(self, key):
        """Returns standard normal clips, and a second network that is the teacher."""
        one, zero = jnp.ones_like(STD), jnp.zeros_like(MEAN)
        score = {"mean": zero, "log_std": zero}
        return {"text": {}, "model": {"mean": zero, "std": one}, "score": score}

    def frozen(self):
        """Nothing is held."""
        return {}

    def roll(self, student, batch, key):
        """Returns clips of the student."""
        noise = jax.random.normal(named(key, "noise"), batch["latents"].shape)
        made = student["model"]["mean"] + student["model"]["std"] * noise
        still = jax.lax.stop_gradient(made)
        return Rollout(made, still, still)

    def real(self, frozen, tokens, x, t):
        """Returns what the teacher sees."""
        return seen(MEAN, STD, x, t)

    def second(self, score, frozen, tokens, watched=False):
        """Returns a network that knows the law of its parameters."""

        def network(x, call, carry):
            mean, std = MEAN + score["mean"], STD * jnp.exp(score["log_std"])
            x0, wide = seen(mean, std, x, call.t), expand(call.t, x)
            return (x - x0) / wide, carry  # noise less clean clips

        return network


def of_law(mean, std):
    """Returns parameters of a student of this law, and of a second network that knows it."""
    score = {"mean": mean - MEAN, "log_std": jnp.log(std / STD)}
    return {"text": {}, "model": {"mean": mean, "std": std}, "score": score}


@dataclasses.dataclass(frozen=True)
class Clips(pair.Plane):
    """The points of a plane as clips of two frames."""

    def draw(self, data, step, batch_size):
        """Returns the batch of a step."""
        points, data = super().draw(data, step, batch_size)
        latents = points.reshape(-1, 2, 1, 1, 1)
        return {"latents": latents, "tokens": jnp.zeros((batch_size, 1), jnp.int32)}, data


def experiment(**source: Any) -> Experiment:
    """Six hundred steps, a second or two."""
    return Experiment(
        name="players",
        objective=Normal(),
        source=Clips(**source),
        optimizer=Optimizer(kind="adamw", learning_rate=2e-2, warmup_steps=10, weight_decay=0.0),
        batch_size=256,
        num_steps=600,
        ema_decay=0.98,
        log_every=200,
        checkpoint_every=300,
    )
