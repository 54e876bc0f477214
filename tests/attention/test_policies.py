"""Policies: what they allow, as masks and through attention."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvdm.attention
from jvdm.attention import AttentionCall, Dense, FrameCausal, Policy, TokenGrid
from jvdm.errors import ConfigError
from jvdm.samplers import Call
from pallas_kernels import block_sparse_attention, dense_attention

GRID = TokenGrid(frames=4, height=2, width=3)
T = jnp.full((1, 4), 0.5)
NOTHING: Any = None  # as queries, keys and values
CALL = AttentionCall(jnp.int32(0), Call.at(T).row, T, GRID)


POLICIES = [type(policy).__name__ for policy in jvdm.attention.POLICIES.values()]


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_is_a_hashable_value_that_follows_the_protocol(name):
    make = getattr(jvdm.attention, name)
    assert isinstance(make(), Policy)
    assert hash(make()) == hash(make()) and make() == make()


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_can_be_written_as_json(name):
    policy = getattr(jvdm.attention, name)()
    fields = dataclasses.asdict(policy)
    assert type(policy)(**json.loads(json.dumps(fields))) == policy


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("num_rows", [1, 2, 50])
def test_phases_divide_the_rows_and_share_one_state(name, num_rows):
    policy = getattr(jvdm.attention, name)()
    phases = policy.phases(num_rows)
    assert sum(length for _, length in phases) == num_rows
    assert all(length > 0 for _, length in phases)
    shape = jax.tree.structure(policy.init(GRID))
    assert {jax.tree.structure(policy.in_phase(name).init(GRID)) for name, _ in phases} == {shape}


def test_dense_allows_everything():
    assert Dense().select(NOTHING, NOTHING, NOTHING, None, CALL) == (None, None)


@pytest.mark.parametrize("block", [1, 2, 4])
def test_causal_allows_its_own_block_and_earlier_ones(block):
    blocks, _ = FrameCausal(block).select(NOTHING, NOTHING, NOTHING, None, CALL)
    mask = blocks.token_mask()
    frame = np.arange(GRID.tokens) // GRID.tokens_per_frame // block
    assert mask.shape == (1, 1, GRID.tokens, GRID.tokens)
    np.testing.assert_array_equal(mask[0, 0], frame[:, None] >= frame[None, :])


@pytest.mark.parametrize("grid", [TokenGrid(3, 5, 7), TokenGrid(5, 16, 16), TokenGrid(2, 1, 1)])
def test_causal_is_the_mask_of_pairs_on_any_grid(grid):
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, grid.tokens, 2, 8))
    frame = jnp.arange(grid.tokens) // grid.tokens_per_frame
    exact = dense_attention(q, k, v, mask=(frame[:, None] >= frame[None])[None, None])
    mask, _ = FrameCausal().select(q, k, v, None, CALL._replace(grid=grid))
    np.testing.assert_array_equal(block_sparse_attention(q, k, v, mask), exact)
    out = block_sparse_attention(q, k, v, mask, implementation="xla")
    np.testing.assert_allclose(out, exact, atol=2e-6)


def test_a_policy_refuses_what_it_cannot_do_before_anything_is_computed():
    with pytest.raises(ConfigError, match="blocks of 0 over 4 latent frames"):
        FrameCausal(0).init(GRID)
    long = dataclasses.replace(GRID, frames=5000)
    assert FrameCausal(3).init(long) is None
    with pytest.raises(ConfigError, match="blocks of 2 over 5000 latent frames.*2048 blocks"):
        FrameCausal(2).init(long)


def test_masked_keys_have_no_influence():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, GRID.tokens, 2, 8))
    mask, _ = FrameCausal().select(q, k, v, None, CALL)
    last = GRID.tokens - GRID.tokens_per_frame
    base = block_sparse_attention(q, k, v, mask)
    other = block_sparse_attention(q, k.at[:, last:].add(1.0), v.at[:, last:].add(5.0), mask)
    np.testing.assert_array_equal(base[:, :last], other[:, :last])
    assert np.abs(base[:, last:] - other[:, last:]).max() > 0.1
    assert jnp.isfinite(other).all()
