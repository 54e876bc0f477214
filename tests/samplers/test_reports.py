"""What users of other libraries reported, and must not happen here.

Elsewhere: padding, windows and batches that change noise (test_sampler.py), the last step of
multistep solvers at a singular end (test_solvers_named.py).
"""

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jvdm.models import Conditions
from jvdm.samplers import (
    ClassifierFree,
    Denoised,
    Euler,
    ExplicitLevels,
    LagMatrix,
    Projected,
    ShiftedLevels,
    SynchronousMatrix,
    TrainTimes,
    UniPC,
    edm,
    freeze,
    from_index,
    guided,
    guided_carry,
    lag_matrix,
    linspace_levels,
    make_denoiser,
    rectified_flow,
    sample,
    times,
    whole_thousandths,
)
from jvdm.system import System
from jvdm.training.flow_matching import FlowMatching
from jvdm.training.objective import TrainCall
from tests.samplers.problems import NoisyAverage, mixture_denoiser, noise_like

FLOW, KEY = rectified_flow(), jax.random.key(0)


def levels_told(matrix, x):
    """The level that each row's call of the network is told for the first frame."""

    def network(x, call, seen):
        return jnp.zeros_like(x), seen.at[call.row.index].set(call.t[0, 0])

    seen = jnp.full(matrix.num_rows, -1.0)
    return sample(make_denoiser(network, FLOW), Euler(), FLOW, matrix, x, KEY, carry=seen).carry


def test_explicit_levels_reach_the_network_bit_by_bit_and_a_shift_is_applied_once():
    given = (1.0, 0.9371, 0.75000006, 0.3, 0.1)
    x = noise_like((1, 2, 4))
    told = levels_told(SynchronousMatrix()(ExplicitLevels(given)(), 2), x)
    np.testing.assert_array_equal(told, np.array(given, np.float32))
    told = levels_told(LagMatrix(2)(ShiftedLevels(5, 3.0)(), 2), x)[:5]
    even = np.linspace(1, 0, 6)[:5]
    np.testing.assert_allclose(told, 3 * even / (1 + 2 * even), rtol=1e-6)


@dataclasses.dataclass(frozen=True)
class Shown(System):
    """A system whose network says what it is shown."""

    seen: Any = None

    def told(self, params, ids, channel=None, pictures=None, actions=None):
        return Conditions()

    def predict(self, params, told):
        def network(x, call, carry):
            self.seen.append((call.t, x))
            return jnp.zeros_like(x), carry

        return network


@pytest.mark.parametrize(
    "process",
    [rectified_flow(whole_thousandths), edm(t_max=1.0)],
    ids=["thousandths", "edm"],
)
def test_the_trainer_and_the_sampler_show_the_network_the_same(process):
    matrix, row = lag_matrix(linspace_levels(7), 3, lag=2), 4
    shape, t = (2, 3, 2, 2, 1), jnp.broadcast_to(times(matrix)[row], (2, 3))
    text = SimpleNamespace(read=lambda prompts: (np.zeros((1, 1), np.int32), ()))
    system = Shown(text, None, None, process, seen=[])
    objective = FlowMatching(
        system, lambda key, batch, latent_frames: TrainTimes(t, jnp.ones((2, 3)))
    )
    batch = {"latents": noise_like(shape), "tokens": jnp.zeros((2, 1), jnp.int32)}
    call = TrainCall(jnp.int32(0), KEY, {}, {})
    objective.loss({}, batch, call)
    ((told, fed),) = system.seen

    # The same clip at the same row: what the trainer corrupted is where a run goes on.
    undo = jnp.hypot(process.alpha(t) * process.data_std, process.sigma(t))[..., None, None, None]
    x = fed * undo if process.scale_input else fed

    def network(x, call, carry):
        return jnp.zeros_like(x), (call.t, x)

    rest = from_index(matrix.levels, matrix.index[row : row + 2])
    run = sample(make_denoiser(network, process), Euler(), process, rest, x, KEY, carry=(t, x))
    np.testing.assert_array_equal(run.carry[0], told)
    np.testing.assert_allclose(run.carry[1], fed, rtol=1e-6)


def test_noise_that_is_drawn_while_sampling_is_the_same_on_any_mesh():
    matrix, x = lag_matrix(linspace_levels(2), 2, lag=1), noise_like((4, 2, 8))
    solver, denoise = NoisyAverage(), mixture_denoiser(FLOW)
    run = jax.jit(lambda x: sample(denoise, solver, FLOW, matrix, x, KEY).x)
    one = np.asarray(run(x))
    for count in (2, 4):
        mesh = Mesh(np.array(jax.devices()[:count]), ("videos",))
        split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("videos")))
        assert len(split.sharding.device_set) == count
        np.testing.assert_array_equal(run(split), one)


@pytest.mark.parametrize("rule", [ClassifierFree(50.0), Projected(9.0, momentum=-0.5)], ids=str)
def test_guidance_changes_no_frozen_frame(rule):
    """Also where the branches fail there, and where the rule remembers."""
    matrix, x = lag_matrix(linspace_levels(3), 4, lag=1), noise_like((2, 4, 8))

    def denoiser_of(names):
        def network(x, call, carry):
            branch = jnp.repeat(jnp.arange(len(names)), x.shape[0] // len(names))
            x0 = jnp.where(branch[:, None, None] == 0, jnp.sin(3 * x), 0.5 * x)
            frozen = (call.t == call.t_next)[..., None]
            return Denoised(jnp.where(frozen, jnp.nan, x0), x - x0), carry

        return network

    def run(matrix):
        carry = guided_carry(rule, lambda names: None, x.shape)
        denoise = guided(rule, denoiser_of, FLOW)
        return sample(denoise, UniPC(2), FLOW, matrix, x, KEY, carry=carry).x

    run = jax.jit(run)
    kept = run(freeze(matrix, (0, 2), level=1))
    np.testing.assert_array_equal(kept[:, [0, 2]], x[:, [0, 2]])
    np.testing.assert_array_equal(kept[:, [1, 3]], run(freeze(matrix, ()))[:, [1, 3]])
    assert not np.allclose(kept[:, 1], x[:, 1])
