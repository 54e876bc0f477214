"""A teacher that is known exactly: the flow of a mixture of eight trajectories of a point.

Frames have levels of their own. Latents are `[B, 4, 1, 1, 2]`.
"""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jvdm.samplers import Euler, rectified_flow
from jvdm.samplers.denoiser import Denoised
from jvdm.samplers.process import corrupt, expand
from jvdm.samplers.segments import divided, follow
from jvdm.system import System
from jvdm.training.distillation import Distillation, Teacher
from jvdm.training.objective import TrainCall

FRAMES, DEVIATION, BATCH = 4, 0.08, 512
EVEN = (1.0, 0.75, 0.5, 0.25, 0.0)
PROCESS = rectified_flow()


def _means():
    kind = np.arange(8)
    turn = 0.35 * np.arange(FRAMES) * np.where(kind % 2, 1, -1)[:, None]
    angle = kind[:, None] / 8 * 2 * np.pi + turn
    return jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], -1), jnp.float32)


MEANS = _means()
# Thousands of steps: what is compiled fully runs in two thirds of the time.
FULLY = {"xla_backend_optimization_level": 2, "xla_llvm_disable_expensive_passes": False}


def clips(key, count):
    """Draws clean latents."""
    chosen, spread = jax.random.split(key)
    means = MEANS[jax.random.randint(chosen, (count,), 0, 8)]
    return (means + DEVIATION * jax.random.normal(spread, means.shape))[:, :, None, None]


def exact(x, call, carry):
    """Says the mean of clean latents and of noise that `x` at `call.t` may be made of."""
    flat, t, mean = x[:, None, :, 0, 0], call.t[:, None, :, None], MEANS[None]
    variance = (1 - t) ** 2 * DEVIATION**2 + t**2
    off = flat - (1 - t) * mean
    share = jax.nn.softmax(-(off**2 / (2 * variance) + 0.5 * jnp.log(variance)).sum((2, 3)), 1)
    means = mean + (1 - t) * DEVIATION**2 / variance * off
    x0 = (share[:, :, None, None] * means).sum(1)[:, :, None, None]
    wide = expand(call.t, x)
    return Denoised(x0, (x - (1 - wide) * x0) / jnp.maximum(wide, 1e-3)), carry


def net(params, x, t):
    """Returns the velocity that a network of three layers predicts."""
    rate = jnp.array([1.0, 3.0, 9.0, 27.0])[None, None]
    waves = [wave(t[..., None] * rate).reshape(len(t), -1) for wave in (jnp.sin, jnp.cos)]
    hidden = jnp.concatenate([x.reshape(len(x), -1), *waves], -1)
    for kernel, bias in params[:-1]:
        hidden = jax.nn.silu(hidden @ kernel + bias[None])
    return (hidden @ params[-1][0] + params[-1][1][None]).reshape(x.shape)


def fresh(key, sizes=(8 + 32, 256, 256, 8)):
    """Returns parameters of a network."""
    return [
        (jax.random.normal(jax.random.fold_in(key, i), (a, b)) / a**0.5, jnp.zeros(b))
        for i, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False))
    ]


class Untold(System):
    """A system without networks, that is told nothing."""

    def told(self, params, ids, channel=None, pictures=None, actions=None) -> Any:
        """Returns nothing."""
        return None


class Toy(Distillation):
    """The objective itself, whose student and teacher are the two above."""

    def __init__(self, **fields: Any) -> None:
        """Makes the objective of a system without text."""
        super().__init__(Untold(None, None, None), **fields)

    @property
    def taught(self):
        """The exact teacher, whose levels are even."""
        return Teacher(self.system, divided(np.array([1.0, 0.0]), self.edges, self.micro))

    def jump(self, params, told, x, t, s, end=None):
        """Returns latents at `s`."""
        return x + expand(s - t, x) * net(params, x, t)

    def walk(self, frozen, tokens, key, point, steps):
        """Returns where the teacher gets."""
        rows = self.taught.segments.way(point.t, steps, point.s)
        return follow(exact, Euler(), PROCESS, rows, point.x, key)


def trained(loss, params, steps, rate):
    """Returns the average of parameters over a run of Adam; `loss(params, average, key)`."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def step(state, key):
        params, average, moments = state
        update, moments = optimizer.update(jax.grad(loss)(params, average, key), moments)
        params = optax.apply_updates(params, update)
        average = jax.tree.map(lambda old, new: 0.95 * old + 0.05 * new, average, params)
        return (params, average, moments), None

    keys = jax.random.split(jax.random.key(7), steps)
    state = (params, params, optimizer.init(params))
    run = jax.jit(lambda state: jax.lax.scan(step, state, keys), compiler_options=FULLY)
    return run(state)[0][1]


def begun(steps=1500):
    """Returns a student that predicts what the teacher does, at equal levels and others."""

    def loss(params, average, key):
        keys = jax.random.split(key, 4)
        t = jax.random.uniform(keys[0], (BATCH, FRAMES))
        t = jnp.where(jax.random.bernoulli(keys[1], 0.5, (BATCH, 1)), t, t[:, :1])
        x = corrupt(PROCESS, (x0 := clips(keys[2], BATCH)), t, jax.random.normal(keys[3], x0.shape))
        said = exact(x, SimpleNamespace(t=t), None)[0]
        return jnp.mean(jnp.square(net(params, x, t) - (said.eps - said.x0)))

    return trained(loss, fresh(jax.random.key(1)), steps, 2e-3)


def distilled(objective, params, steps=600):
    """Returns the average of a student after so many steps of an objective."""

    def loss(params, average, key):
        keys = jax.random.split(key)
        batch = {"latents": clips(keys[0], BATCH), "tokens": None}
        return objective.loss(params, batch, TrainCall(jnp.int32(0), keys[1], average, {}))[0]

    return trained(loss, params, steps, 5e-4)


def made(denoise, rows, count=2048, seed=3):
    """Returns clips that a denoiser makes in Euler steps along `rows` `[R + 1]` for all frames."""
    x = jax.random.normal(jax.random.key(seed), (count, FRAMES, 1, 1, 2))
    ways = jnp.broadcast_to(jnp.asarray(rows)[:, None, None], (len(rows), count, FRAMES))
    return jax.jit(lambda x: follow(denoise, Euler(), PROCESS, ways, x, jax.random.key(0)))(x)


def student(params):
    """Returns the denoiser of a network."""

    def denoise(x, call, carry):
        velocity, wide = net(params, x, call.t), expand(call.t, x)
        return Denoised(x - wide * velocity, x + (1 - wide) * velocity), carry

    return denoise


def distance(found, count=2048):
    """Returns the energy distance to clips that are drawn; without bias, 0 for equal laws."""
    one, other = (
        np.asarray(a, np.float64).reshape(len(a), -1)
        for a in (found, clips(jax.random.key(11), count))
    )

    def far(a, b):
        square = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
        return np.sqrt(np.maximum(square, 0))

    def within(a):
        pairs = far(a, a)
        return (pairs.sum() - np.trace(pairs)) / (len(a) * (len(a) - 1))

    return 2 * far(one, other).mean() - within(one) - within(other)
