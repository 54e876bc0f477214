"""What networks carry: absolute positions of a window, one policy state per layer."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm import samplers
from jvdm.attention import FrameCausal, Policy
from jvdm.errors import ConfigError
from jvdm.samplers import Call
from tests.models.small import DIT, SHAPE, conditions, latents, parameters

T = jnp.array([[0.1, 0.5, 0.9], [0.3, 0.3, 1.0]])


@dataclasses.dataclass(frozen=True)
class MeanQuery(Policy):
    """Dense attention that keeps a decaying mean of what its layer asked."""

    def phases(self, num_rows):
        return (("first", 1), ("rest", num_rows - 1))

    def init(self, grid):
        mean = jnp.zeros((grid.batch, grid.heads, grid.head_dim))
        return {"mean": mean, "layer": jnp.int32(-1), "rows": jnp.int32(0)}

    def select(self, q, k, v, state, call):
        mean = 0.5 * state["mean"] + q.astype(jnp.float32).mean(1)
        return None, {"mean": mean, "layer": call.layer, "rows": state["rows"] + call.row.index}


def at_row(index, start=0):
    call = Call.at(T)
    row = call.row._replace(index=jnp.int32(index), start=jnp.int32(start))
    return call._replace(row=row)


def run(x, call, carry, model=DIT):
    return step(model)(parameters(), x, call, conditions(), carry)


@functools.cache
def step(model):
    return jax.jit(lambda params, *inputs: model.apply({"params": params}, *inputs))


def test_a_window_sees_the_positions_of_its_frames():
    positions = jnp.array([0.0, 1.0, 2.0, 5.0, 9.0])
    whole = DIT.start(*SHAPE[1:4], positions)
    for start in range(3):
        moved, carry = run(latents(), at_row(0, start), whole)
        part = DIT.start(*SHAPE[1:4], positions[start : start + 3])
        np.testing.assert_array_equal(moved, run(latents(), at_row(0), part)[0])
        np.testing.assert_array_equal(carry.positions, positions)
    first, second = (run(latents(), at_row(0, start), whole)[0] for start in (0, 2))
    assert np.abs(first - second).max() > 1e-3


def test_a_call_without_a_carry_is_the_first_of_a_run():
    carry = DIT.start(*SHAPE[1:4])
    alone, with_carry = (run(latents(), at_row(0), c)[0] for c in (None, carry))
    np.testing.assert_array_equal(alone, with_carry)


def test_each_layer_finds_its_own_state_again():
    model = DIT.clone(policy=MeanQuery())
    carry = model.start(*SHAPE[1:4], batch=SHAPE[0])
    assert carry.layers["mean"].shape == (model.depth, SHAPE[0], 2, 16)
    assert carry.layers["rows"].shape == (model.depth,)
    _, one = run(latents(), at_row(1), carry, model)
    out, two = run(latents(1), at_row(2), one, model)
    _, alone = run(latents(1), at_row(2), carry, model)
    np.testing.assert_array_equal(one.layers["layer"], np.arange(model.depth))
    np.testing.assert_array_equal(two.layers["rows"], [3] * model.depth)
    expected = 0.5 * one.layers["mean"] + alone.layers["mean"]
    np.testing.assert_allclose(two.layers["mean"], expected, rtol=1e-5)
    assert len(set(np.asarray(two.layers["mean"]).ravel().tolist())) == two.layers["mean"].size
    np.testing.assert_array_equal(out, run(latents(1), at_row(2), None)[0])


def test_a_run_hands_the_state_of_every_layer_from_row_to_row():
    model, policy = DIT.clone(policy=MeanQuery()), MeanQuery()
    first = model.start(*SHAPE[1:4], batch=SHAPE[0])
    matrix = samplers.synchronous(samplers.linspace_levels(4), SHAPE[1])
    solver, process = samplers.Euler(), samplers.rectified_flow()
    denoise = samplers.make_denoiser(functools.partial(run, model=model), process)
    state = samplers.start(solver, latents(), jax.random.key(0), first)
    means = []
    for row in range(matrix.num_rows):
        state = samplers.advance(denoise, solver, process, matrix, state, row, 1)
        means.append(np.asarray(state.carry.layers["mean"]))
    np.testing.assert_array_equal(state.carry.layers["rows"], [0 + 1 + 2 + 3] * model.depth)
    np.testing.assert_array_equal(state.carry.layers["layer"], range(model.depth))
    run_key = jax.random.key(0)
    whole = samplers.sample(denoise, solver, process, matrix, latents(), run_key, carry=first)
    np.testing.assert_allclose(whole.carry.layers["mean"], means[-1], rtol=1e-4)
    assert np.abs(np.diff(means, axis=0)).min() > 0
    assert sum(length for _, length in policy.phases(matrix.num_rows)) == matrix.num_rows


def test_sizes_that_a_policy_refuses_are_refused_by_the_model():
    model = DIT.clone(policy=FrameCausal(0))
    with pytest.raises(ConfigError, match="blocks of 0 over 3 latent frames"):
        model.start(*SHAPE[1:4])
    call = Call.at(T)
    with pytest.raises(ConfigError, match="blocks of 0"):
        jax.eval_shape(model.apply, {"params": parameters()}, latents(), call, conditions())
    made = jax.eval_shape(model.init, jax.random.key(0), latents(), call, conditions())
    assert jax.tree.structure(made["params"]) == jax.tree.structure(parameters())


def test_a_run_of_a_model_that_collects_keeps_the_structure_of_its_carry():
    model = DIT.clone(collect=(1,))
    single = run(latents(), Call.at(T), None, model)[1].features
    assert single.shape == (1, 2, 12, 32)
    quiet = run(latents(), Call.at(T), model.start(*SHAPE[1:4]), model)[1]
    assert quiet.features is None
    asked = model.start(*SHAPE[1:4]).replace(features=jnp.zeros_like(single))
    np.testing.assert_array_equal(run(latents(), Call.at(T), asked, model)[1].features, single)
