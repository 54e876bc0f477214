"""Rollouts: a student makes what its system makes, and the gradient is that of its exits."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.attention import CachedCausal, FrameCausal
from jvdm.errors import ConfigError
from jvdm.samplers import (
    AutoregressiveMatrix,
    CachedMatrix,
    ClassifierFree,
    ExplicitLevels,
    LagMatrix,
    SynchronousMatrix,
    TrapezoidMatrix,
    TruncatedMatrix,
    Unguided,
)
from jvdm.samplers.denoiser import Call
from jvdm.samplers.sampler import sample
from jvdm.samplers.solvers import Consistency, Heun
from jvdm.system import System
from jvdm.training.rollouts import Rollouts, run_of
from tests.generate.nano import SYSTEM, drawn

EDGES = (1.0, 0.8, 0.5, 0.0)
SHAPE = (2, 8, 2, 4, 4)
CHUNKS = CachedMatrix(AutoregressiveMatrix(2), lookback=4)
ROLLING = CachedMatrix(LagMatrix(1, 1), lookback=2)
WAYS: dict[str, tuple[Any, Any]] = {
    "clip": (SynchronousMatrix(), None),
    "chunks": (CHUNKS, CachedCausal(4, block=2)),
    "recomputed": (AutoregressiveMatrix(2), FrameCausal(2)),
    "rolling": (ROLLING, CachedCausal(5)),
    "free": (
        CachedMatrix(LagMatrix(1, 1), lookback=1),
        CachedCausal(4, sink=1, rotary="read", free=True),
    ),
}


def system_of(way: str) -> System:
    matrix, policy = WAYS[way]
    rules = {"matrix": matrix, "policy": policy, "levels": ExplicitLevels(EDGES)}
    rules |= {"solver": Consistency(), "guidance": Unguided()}
    return dataclasses.replace(SYSTEM, sampling=dataclasses.replace(SYSTEM.sampling, **rules))


@pytest.fixture(scope="module")
def params():
    return drawn(SYSTEM.init_denoiser, jax.random.key(1))


NOISE = jax.random.normal(jax.random.key(3), SHAPE)
TRUE = jax.random.normal(jax.random.key(4), SHAPE)
KEY = jax.random.key(5)


def told_of(system, params):
    tokens = jnp.asarray(system.text.read(("a red ball", "a blue box"))[0])
    return system.told(params, tokens)


@pytest.fixture(scope="module", params=sorted(WAYS))
def rolled(request, params):
    """Returns a way's system, and its rollouts of every exit."""
    system = system_of(request.param)

    @jax.jit
    def roll(chosen):
        return Rollouts(system).make(params, told_of(system, params), NOISE, chosen, KEY)

    return request.param, system, [roll(jnp.int32(chosen)) for chosen in range(3)]


def run(system, params, matrix, solver=None):
    """Returns the last state of a run as every other program makes it."""
    sampling = system.sampling
    begin = system.start(SHAPE, matrix.window)
    denoise = system.denoiser(params, told_of(system, params))
    rules = (solver or sampling.solver, system.process, matrix)
    return jax.jit(lambda: sample(denoise, *rules, NOISE, KEY, carry=begin))()


def test_a_rollout_that_is_left_at_its_last_step_is_a_run_of_the_system(rolled, params):
    _, system, rollouts = rolled
    sampling = system.sampling
    plain = run(system, params, sampling.matrix(sampling.levels(), SHAPE[1])).x
    np.testing.assert_allclose(rollouts[-1].clean, plain, atol=1e-6)


def test_a_chain_that_is_left_early_makes_what_its_call_says(rolled):
    way, _, rollouts = rolled
    for made, still, clean in rollouts:
        np.testing.assert_allclose(made, still, atol=2e-5)
        if way not in ("rolling", "free"):
            np.testing.assert_array_equal(still, clean)
    apart = float(jnp.abs(rollouts[0].clean - rollouts[1].clean).max())
    assert (apart > 1e-2) == (way not in ("rolling", "free"))


@dataclasses.dataclass(frozen=True)
class Heard(Consistency):
    """Keeps what the network said of each frame at its exit."""

    exits: tuple[int, ...] = ()

    def init(self, x):
        return x

    def move(self, denoised, x, state, context):
        first, there = context.row.start, jnp.asarray(self.exits)
        mine = jax.lax.dynamic_slice_in_dim(there, first, x.shape[1])
        now = (context.updates == mine[None])[..., None, None, None]
        return super().move(denoised, x, state, context)[0], jnp.where(now, denoised.x0, state)


@pytest.mark.parametrize("way", ["rolling", "free"])
def test_a_rolling_window_goes_on_and_its_exits_are_what_was_said_there(way, params):
    system = system_of(way)
    sampling = system.sampling
    matrix = sampling.matrix(sampling.levels(), SHAPE[1])
    for chosen in range(3):
        rows = run_of(sampling.matrix, sampling.policy, 3, SHAPE[1])
        exits = tuple(((chosen - np.arange(SHAPE[1])) % 3).tolist())
        np.testing.assert_array_equal(rows.exits[chosen], exits)
        heard = run(system, params, matrix, Heard(exits=exits))
        rolled = Rollouts(system).make(
            params, told_of(system, params), NOISE, jnp.int32(chosen), KEY
        )
        np.testing.assert_allclose(rolled.clean, heard.x, atol=1e-5)
        np.testing.assert_allclose(rolled.made, heard.solver, atol=2e-5)


def size(tree):
    return float(sum(jnp.abs(leaf).sum() for leaf in jax.tree.leaves(tree)))


def test_the_gradient_of_a_whole_clip_is_that_of_one_call(params):
    system = system_of("clip")
    told = told_of(system, params)
    weights = jax.random.normal(jax.random.key(9), SHAPE)

    def through(params):
        rolled = Rollouts(system).make(params, told, NOISE, jnp.int32(1), KEY)
        return jnp.sum(rolled.made * weights)

    step = sampled_to(system, params, 1)

    def once(params):
        denoise = system.denoiser(params, told)
        carry = system.start(SHAPE, SHAPE[1])
        call = Call.at(jnp.full(SHAPE[:2], EDGES[1]))
        return jnp.sum(denoise(step, call, carry)[0].x0 * weights)

    mine, plain = (jax.jit(jax.grad(of))(params) for of in (through, once))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-3), mine, plain)
    assert size(mine) > 1


def sampled_to(system, params, steps):
    """Returns the latents after so many steps of a whole clip."""
    levels = jnp.asarray(EDGES[: steps + 1])
    return run(system, params, SynchronousMatrix()(levels, SHAPE[1])).x


def test_the_past_is_shown_as_it_was_given_and_has_no_gradient(params):
    system = system_of("chunks")
    told = told_of(system, params)

    @jax.jit
    def made(past):
        return Rollouts(system).make(params, told, NOISE[:, :4], jnp.int32(0), KEY, past).made

    true = TRUE[:, :4]
    one, other = made(true), made(true.at[:, :2].add(1.0))
    np.testing.assert_array_equal(one[:, :2], other[:, :2])  # nothing is before them
    assert float(jnp.abs(one[:, 2:] - other[:, 2:]).max()) > 1e-3
    slope = jax.jit(jax.grad(lambda past: made(past).sum()))(true)
    assert size(slope) == 0.0


def test_own_frames_are_shown_where_no_past_is_given(params):
    system = system_of("chunks")
    told = told_of(system, params)
    own = Rollouts(system).make(params, told, NOISE, jnp.int32(2), KEY)
    again = Rollouts(system).make(params, told, NOISE, jnp.int32(2), KEY, own.clean)
    np.testing.assert_allclose(own.made, again.made, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"guidance": ClassifierFree(2.0)}, "guidance of several branches"),
        ({"solver": Heun()}, "solver of several evaluations"),
    ],
)
def test_runs_that_a_rollout_cannot_follow_are_refused(changes, says):
    system = system_of("clip")
    Rollouts(system)
    changed = dataclasses.replace(system, sampling=dataclasses.replace(system.sampling, **changes))
    with pytest.raises(ConfigError, match=says):
        Rollouts(changed)


def test_a_matrix_whose_frames_wait_between_their_steps_is_refused():
    for rule in (SynchronousMatrix(), LagMatrix(2, 1), TrapezoidMatrix(1, 1)):
        assert run_of(rule, FrameCausal(), 4, 5).exits.shape == (4, 5)
    with pytest.raises(ConfigError, match="successive rows"):
        run_of(TruncatedMatrix(SynchronousMatrix(), 0.5), FrameCausal(), 4, 5)
    with pytest.raises(ConfigError, match="reads latent frame"):
        run_of(CachedMatrix(AutoregressiveMatrix(1)), CachedCausal(2), 2, 5)


def test_the_gradient_of_a_rolling_window_is_that_of_its_calls_alone(params):
    """Frames see each other there: it reaches those beside them, and not what was written."""
    system = system_of("free")
    told = told_of(system, params)
    weights = jnp.zeros(SHAPE).at[:, 3].set(jax.random.normal(jax.random.key(9), SHAPE[2:]))

    @jax.jit
    def made(params, noise):
        return Rollouts(system).make(params, told, noise, jnp.int32(1), KEY).made

    one = made(params, NOISE)
    later = made(params, NOISE.at[:, 4].add(1.0))
    assert float(jnp.abs(one[:, 3] - later[:, 3]).max()) > 1e-3  # beside it, it is seen
    slope = jax.jit(jax.grad(lambda params: jnp.sum(made(params, NOISE) * weights)))(params)
    assert size(slope) > 1
