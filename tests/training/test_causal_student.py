"""A student that makes one frame after the other, from a teacher that is known exactly.

Clips have two frames, which are numbers: both are normal, with a correlation. Behind a true first
frame `a` the second is `RHO a + sqrt(1 - RHO^2) z`, and a student that jumps from noise `z` to the
end has to say so. One that regresses ends of a teacher that denoised both frames together learns
another law, whatever the first frame is: that is what Causal Forcing says of Self-Forcing's
beginning (ODE pairs of a bidirectional teacher).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jvdm import ConfigError
from jvdm.samplers import Euler, LagMatrix
from jvdm.samplers.denoiser import Denoised
from jvdm.samplers.process import expand
from jvdm.samplers.segments import follow
from jvdm.training.distillation import Distillation
from jvdm.training.objective import TrainCall
from jvdm.values import from_data
from tests.generate.nano import SYSTEM
from tests.training.flow_toy import PROCESS, Toy

RHO, BATCH = 0.8, 512
MICRO = 64  # steps of the teacher: the error of Euler is below that of the regression


def clips(key):
    """Draws clean clips, `[B, 2, 1, 1, 1]`."""
    one, two = jax.random.normal(key, (2, BATCH))
    return jnp.stack([one, RHO * one + (1 - RHO**2) ** 0.5 * two], 1)[..., None, None, None]


def exact(x, call, carry):
    """Says the mean of clean clips and of noise that `x` at `call.t` may be made of."""
    flat, t = x[..., 0, 0, 0], call.t
    alpha = 1 - t
    variance, both = alpha**2 + t**2 + 1e-6, RHO * alpha[:, :1] * alpha[:, 1:]
    cofactors = variance[:, ::-1] * flat - both * flat[:, ::-1]
    solved = alpha * cofactors / (variance[:, :1] * variance[:, 1:] - both**2)
    x0 = (solved + RHO * solved[:, ::-1])[..., None, None, None]
    wide = expand(t, x)
    return Denoised(x0, (x - (1 - wide) * x0) / jnp.maximum(wide, 1e-3)), carry


class Linear(Toy):
    """The objective, whose student jumps by numbers and whose teacher is `exact`."""

    def jump(self, params, told, x, t, s, end=None):
        """Returns latents at `s`: the first frame by one number, the second by two."""
        first, second = x[:, :1], x[:, 1:]
        ends = [params[0] * first, params[1] * first + params[2] * second]
        return jnp.where(expand(s == t, x), x, jnp.concatenate(ends, 1))

    def walk(self, frozen, tokens, key, point, steps):
        """Returns where the teacher gets."""
        rows = self.taught.segments.way(point.t, steps, point.s)
        return follow(exact, Euler(), PROCESS, rows, point.x, key)


def learnt(objective) -> np.ndarray:
    """Returns the numbers of a student after it is trained."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 150))

    def step(state, key):
        params, moments = state
        keys = jax.random.split(key)
        batch = {"latents": clips(keys[0]), "tokens": None}
        call = TrainCall(jnp.int32(0), keys[1], params, {})
        slope = jax.grad(lambda params: objective.loss(params, batch, call)[0])(params)
        update, moments = optimizer.update(slope, moments)
        return (optax.apply_updates(params, update), moments), None

    first = jnp.array([0.5, 0.0, 0.5])
    keys = jax.random.split(jax.random.key(7), 150)
    run = jax.jit(lambda state: jax.lax.scan(step, state, keys)[0][0])
    return np.asarray(run((first, optimizer.init(first))))


def objective_of(**fields) -> Linear:
    return Linear(edges=(1.0, 0.0), micro=MICRO, source="stream", chunk=1, **fields)


def test_behind_the_true_past_a_student_learns_the_law_of_the_next_frame():
    found = learnt(objective_of(lag=1))  # of one segment: frame after frame
    # Euler's error with 64 steps; pairs have no noise.
    np.testing.assert_allclose(found, [1.0, RHO, (1 - RHO**2) ** 0.5], atol=0.03)


def test_ends_of_a_teacher_that_denoises_all_frames_together_have_another_law():
    """Least squares on its pairs: exact, since here the past and `z` say the noise of the past."""
    noise = jax.random.normal(jax.random.key(1), (BATCH, 2, 1, 1, 1))
    rows = jnp.broadcast_to(jnp.linspace(1.0, 0.0, MICRO + 1)[:, None, None], (MICRO + 1, BATCH, 2))
    end = jax.jit(lambda x: follow(exact, Euler(), PROCESS, rows, x, jax.random.key(0)))(noise)
    past, ends, z = (np.asarray(x)[..., 0, 0, 0] for x in (end[:, 0], end[:, 1], noise[:, 1]))
    found = np.linalg.lstsq(np.stack([past, z], 1), ends, rcond=None)[0]
    angle = 0.5 * np.arcsin(RHO)  # the end is the square root of the covariance times the noise
    one, two = np.cos(angle), np.sin(angle)
    np.testing.assert_allclose(found, [two / one, one - two**2 / one], atol=0.03)
    made = found @ np.random.default_rng(0).normal(size=(2, 100_000))  # behind any first frame
    assert abs(found[0] / made.std() - 0.6) < 0.03  # the correlation of films, which is .8


def test_rows_of_one_chunk_after_the_other_have_one_in_work_behind_clean_ones():
    objective = Toy(edges=(1.0, 0.5, 0.0), source="stream", chunk=2, lag=2)
    times = objective.rows(objective.taught.segments)(jax.random.key(0), 200, 6)
    t, moving = (np.asarray(x).reshape(200, 3, 2)[..., 0] for x in times)
    assert (moving.sum(1) == 1).all()
    at = moving.argmax(1)[:, None]
    assert (np.where(np.arange(3) < at, t, 0) == 0).all()
    assert (np.where(np.arange(3) > at, t, 1) == 1).all()


def test_a_student_of_one_chunk_after_the_other_is_sampled_so():
    fields = {"edges": (1.0, 0.5, 0.0), "source": "stream", "chunk": 3}
    for lag in (1, 2):
        rules = Distillation(SYSTEM, lag=lag, **fields).rules
        assert from_data(rules["sampling"]).matrix == LagMatrix(lag, 3)
    for lag in (0, 3):
        with pytest.raises(ConfigError, match=f"lag is {lag}.*has 2 segments"):
            Toy(lag=lag, **fields)
