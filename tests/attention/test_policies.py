"""Policies: what they allow, as masks and through attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvdm.attention
from jvdm.attention import AttentionCall, Dense, FrameCausal, Policy, TokenGrid
from jvdm.samplers import Call
from pallas_kernels import dense_attention

GRID = TokenGrid(frames=4, height=2, width=3)
T = jnp.full((1, 4), 0.5)
CALL = AttentionCall(jnp.int32(0), Call.at(T).row, T, GRID)


@pytest.mark.parametrize(
    "name", [n for n in jvdm.attention.__all__ if n not in ("AttentionCall", "Policy", "TokenGrid")]
)
def test_every_policy_is_a_hashable_value_that_follows_the_protocol(name):
    make = getattr(jvdm.attention, name)
    assert isinstance(make(), Policy)
    assert hash(make()) == hash(make()) and make() == make()


def test_dense_allows_everything():
    assert Dense().select(None, None, None, None, CALL) == (None, None)


@pytest.mark.parametrize("block", [1, 2, 4])
def test_causal_allows_its_own_block_and_earlier_ones(block):
    mask, _ = FrameCausal(block).select(None, None, None, None, CALL)
    frame = np.arange(GRID.tokens) // GRID.tokens_per_frame // block
    assert mask.shape == (1, 1, GRID.tokens, GRID.tokens)
    np.testing.assert_array_equal(mask[0, 0], frame[:, None] >= frame[None, :])


def test_masked_keys_have_no_influence():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, GRID.tokens, 2, 8))
    mask, _ = FrameCausal().select(q, k, v, None, CALL)
    last = GRID.tokens - GRID.tokens_per_frame
    base = dense_attention(q, k, v, mask=mask)
    other = dense_attention(q, k.at[:, last:].add(1.0), v.at[:, last:].add(5.0), mask=mask)
    np.testing.assert_array_equal(base[:, :last], other[:, :last])
    assert np.abs(base[:, last:] - other[:, last:]).max() > 0.1
    assert jnp.isfinite(other).all()
