"""Attention: exact cases, padding, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import dense_attention
from pallas_kernels.attention import refusal

Q, K, V = (jax.random.normal(jax.random.key(i), (2, n, 3, 8)) for i, n in enumerate((5, 7, 7)))


def test_equal_keys_give_the_mean_of_the_values():
    out = dense_attention(Q, jnp.zeros_like(K), V)
    mean = jnp.broadcast_to(V.mean(1, keepdims=True), Q.shape)
    np.testing.assert_allclose(out, mean, atol=1e-6)


def test_permuting_keys_with_their_values_changes_nothing():
    order = jnp.array([3, 1, 6, 0, 2, 5, 4])
    ours = dense_attention(Q, K[:, order], V[:, order])
    np.testing.assert_allclose(ours, dense_attention(Q, K, V), atol=1e-6)


def test_lengths_cut_the_keys():
    out = dense_attention(Q, K, V, kv_lengths=jnp.array([7, 3]))
    np.testing.assert_allclose(out[:1], dense_attention(Q[:1], K[:1], V[:1]), atol=1e-6)
    np.testing.assert_allclose(out[1:], dense_attention(Q[1:], K[1:, :3], V[1:, :3]), atol=1e-6)


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="cuDNN serves this there")
def test_a_refused_implementation_says_why():
    assert "not an NVIDIA GPU" in refusal(Q)
    with pytest.raises(NotImplementedError, match="cudnn: .*not an NVIDIA GPU.*'xla'"):
        dense_attention(Q, K, V, implementation="cudnn")
