"""VSA: its two branches are what they say, a new port changes nothing, and it learns."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.attention import VSA, Dense, TokenGrid, blocks_of
from jvdm.errors import ConfigError
from jvdm.models import Conditions, VideoDiT
from jvdm.samplers import Call
from pallas_kernels import block_sparse_attention, dense_attention
from tests.attention.test_sparse import call_on

GRID = TokenGrid(frames=3, height=5, width=7, batch=2, heads=2, head_dim=8)
BLOCKS = blocks_of(GRID, 8)  # patches are short at the border
POLICY = VSA(0.3, block=8, recall_queries=0)
ORDERED = call_on(GRID)._replace(order=BLOCKS.order)


def drawn(count=4):
    return jax.random.normal(jax.random.key(0), (count, 2, GRID.tokens, 2, 8))


def among(q, k, v, mask=None):
    return block_sparse_attention(q, k, v, mask)


def test_the_coarse_branch_is_attention_where_blocks_are_constant():
    """Then means are the tokens, and short patches count by how many they have."""
    blocks = jax.random.normal(jax.random.key(1), (3, 2, 2, BLOCKS.count, 8))
    q, k, v = [BLOCKS.raster(BLOCKS.spread(x)) for x in blocks]
    coarse = POLICY.coarse(q, k, v, call_on(GRID))
    np.testing.assert_allclose(coarse, dense_attention(q, k, v), atol=2e-6)
    q, k, v = [BLOCKS.ordered(x) for x in (q, k, v)]
    ordered = POLICY.coarse(q, k, v, ORDERED)
    np.testing.assert_allclose(BLOCKS.raster(ordered), coarse, atol=2e-6)


def test_what_is_added_is_the_gate_times_the_coarse_branch():
    q, k, v, gate = (BLOCKS.ordered(x) for x in drawn())
    state = POLICY.init(GRID)
    fine, _ = POLICY.attend(q, k, v, state, ORDERED, among)
    shut, _ = POLICY.attend(q, k, v, state, ORDERED._replace(gate=0 * gate), among)
    both, _ = POLICY.attend(q, k, v, state, ORDERED._replace(gate=gate), among)
    np.testing.assert_array_equal(fine, shut)
    coarse = POLICY.coarse(q, k, v, ORDERED)
    np.testing.assert_allclose(both - fine, gate * coarse, atol=2e-6)


def test_keys_of_blocks_that_are_not_listed_learn_through_the_coarse_branch_alone():
    policy = dataclasses.replace(POLICY, density=1.5 / BLOCKS.count)
    q, k, v, gate = (BLOCKS.ordered(x) for x in drawn())

    def first(k, gate):
        call = ORDERED._replace(gate=gate)
        return policy.attend(q, k, v, policy.init(GRID), call, among)[0][0, 0].sum()

    mask: Any
    mask, _ = policy.select(q, k, v, policy.init(GRID), ORDERED)
    listed = np.repeat(mask.to_dense()[0, :, 0].any(0), BLOCKS.size)
    fine, both = (np.abs(jax.grad(first)(k, g)[0]).max((1, 2)) for g in (0 * gate, gate))
    assert not listed.all() and (fine[~listed] == 0).all() and (fine[listed] > 0).any()
    assert (both[BLOCKS.holds] > 0).all()


@pytest.fixture(scope="module")
def made():
    sizes = {"width": 32, "depth": 2, "latent_channels": 4, "head_dim": 16, "ports": ()}
    model = VideoDiT(**sizes, rotary_axes=(4, 6, 6), dtype="float32", policy=POLICY)
    x = jax.random.normal(jax.random.key(2), (1, 3, 10, 14, 4))
    call = Call.at(jnp.full((1, 3), 0.5))
    params = model.init(jax.random.key(0), x, call, Conditions(), None)["params"]

    def run(policy, params):
        network = model.clone(policy=policy)
        return network.apply({"params": params}, x, call, Conditions(), None)[0]

    return run, params


def test_a_network_that_gets_the_port_is_what_it_was_and_then_learns(made):
    run, params = made
    gate = params["layers"]["self_attention"].pop("gate")
    without, full = run(POLICY, params), run(Dense(), params)
    assert not jnp.any(gate["kernel"]) and gate["kernel"].shape == (2, 32, 32)
    params["layers"]["self_attention"]["gate"] = gate
    np.testing.assert_array_equal(run(POLICY, params), without)
    everything = dataclasses.replace(POLICY, density=1.0)
    np.testing.assert_array_equal(run(everything, params), full)
    assert jnp.abs(without - full).max() > 1e-4
    grads = jax.grad(lambda params: jnp.square(run(POLICY, params)).sum())(params)
    assert jnp.abs(grads["layers"]["self_attention"]["gate"]["kernel"]).max() > 0
    open_ = jax.tree.map(lambda leaf: leaf + 0.1, gate)
    params["layers"]["self_attention"]["gate"] = open_
    dense_layers = dataclasses.replace(POLICY, dense_layers=1)
    assert jnp.abs(run(everything, params) - run(dense_layers, params)).max() > 1e-4
    assert jnp.isfinite(run(dense_layers, params)).all()


def test_a_density_per_head_is_refused():
    with pytest.raises(ConfigError, match="per is 'head'; VSA lists equally many"):
        VSA(per="head")
