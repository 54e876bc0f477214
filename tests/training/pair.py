"""A generator and its critic on a Gaussian of the plane: two optimizers that alternate."""

import dataclasses
import os
import signal
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jvdm.experiment import Experiment
from jvdm.keys import named
from jvdm.training.objective import TrainCall, Updated
from jvdm.training.optimizer import Optimizer

MEAN, STD = np.array([[3.0, -1.0]]), np.array([[0.5, 1.5]])


class Both(NamedTuple):
    """One optimizer for each network."""

    generator: optax.GradientTransformation
    critic: optax.GradientTransformation

    def init(self, params):
        return {name: getattr(self, name).init(params[name]) for name in self._fields}


@dataclasses.dataclass(frozen=True)
class Pair:
    """Even steps move the critic, odd steps the generator, each with its own Adam."""

    hidden: int = 32
    penalty: float = 0.3
    """Weight of the critic's squared slope at true points (Mescheder et al., 2018)."""

    def init(self, key):
        first, second = jax.random.split(key)
        critic = {
            "layers_0": jax.random.normal(first, (2, self.hidden)) * 0.5,
            "bias": jnp.linspace(-2.0, 2.0, self.hidden)[None],
            "head": jax.random.normal(second, (self.hidden, 1)) * 0.1,
        }
        return {
            "generator": {"scale": jnp.ones((1, 2)), "shift": jnp.zeros((1, 2))},
            "critic": critic,
        }

    def make(self, generator, key, count):
        points = jax.random.normal(named(key, "points"), (count, 2))
        return points * generator["scale"] + generator["shift"]

    def judge(self, critic, x):
        hidden = jnp.tanh(x @ critic["layers_0"] + critic["bias"])
        return (hidden @ critic["head"])[..., 0]

    def loss(self, params, batch, call: TrainCall):
        """How well the critic tells the generator's points."""
        made = self.make(params["generator"], call.key, len(batch))
        return jax.nn.softplus(-self.judge(params["critic"], made)).mean(), {}

    def critic_loss(self, params, batch, call):
        made = self.make(params["generator"], call.key, len(batch))
        slope = jax.vmap(jax.grad(lambda x: self.judge(params["critic"], x[None])[0]))(batch)
        true, false = (self.judge(params["critic"], x) for x in (batch, made))
        error = jax.nn.softplus(-true).mean() + jax.nn.softplus(false).mean()
        return error + self.penalty * jnp.sum(slope**2, -1).mean(), {}

    def transform(self, optimizer: Optimizer, num_steps: int) -> Both:
        slow = dataclasses.replace(optimizer, learning_rate=optimizer.learning_rate / 2)
        return Both(slow.build(num_steps // 2), optimizer.build(num_steps // 2))

    def update(self, params, opt_state, batch, call, transform) -> Updated:
        def move(name, loss):
            def moved(params, opt_state):
                (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch, call)
                optimizer, mine = getattr(transform, name), params[name]
                change, state = optimizer.update(gradient[name], opt_state[name], mine)
                return Updated(
                    {**params, name: optax.apply_updates(mine, change)},
                    {**opt_state, name: state},
                    value,
                    optax.tree.norm(gradient[name]),
                    {"generator_moves": jnp.float32(name == "generator")},
                )

            return moved

        turns = (move("critic", self.critic_loss), move("generator", self.loss))
        return jax.lax.switch(call.step % 2, turns, params, opt_state)


@flax.struct.dataclass
class Turn:
    """Which step comes next, on the host."""

    at: list = flax.struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class Plane:
    """True points of a step; asks the process to stop before step `stop_at`."""

    stop_at: int = -1
    bad_at: int = -1

    def start(self, position, saved, mesh):
        return Turn([position])

    def feed(self, data):
        data.at[0] += 1
        if data.at[0] == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return data

    def draw(self, data, step, batch_size):
        points = jax.random.normal(jax.random.fold_in(jax.random.key(7), step), (batch_size, 2))
        return jnp.where(step == self.bad_at, jnp.nan, points * STD + MEAN), data

    def saved(self, data):
        return b""


def experiment(**source: Any) -> Experiment:
    """Two thousand steps, a second or two."""
    return Experiment(
        name="pair",
        objective=Pair(),
        source=Plane(**source),
        optimizer=Optimizer(kind="adamw", learning_rate=2e-2, warmup_steps=10, weight_decay=0.0),
        batch_size=64,
        num_steps=2000,
        ema_decay=0.98,
        log_every=500,
        checkpoint_every=1000,
    )
