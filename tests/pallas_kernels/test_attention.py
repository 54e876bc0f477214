"""Attention: exact cases, padding, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import dense_attention
from pallas_kernels.attention import api, refusal

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


@pytest.mark.parametrize("capability, largest", [("9.0", 256), ("8.0", 128)])
def test_heads_up_to_256_are_for_cudnn_on_a_hopper_gpu(capability, largest, monkeypatch):
    device = type("Device", (), {"compute_capability": capability})
    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(api, "backend", lambda: "gpu")
    heads = {size: refusal(jnp.zeros((1, 8, 1, size), jnp.bfloat16)) for size in (128, 192, 264)}
    assert not heads[128] and bool(heads[192]) == (largest < 192)
    assert f"264 is not a multiple of 8 up to {largest}" in heads[264]


@pytest.mark.skipif(
    jax.default_backend() != "gpu" or jax.devices()[0].compute_capability != "9.0",
    reason="needs an H100 or H200",
)
@pytest.mark.parametrize("size", [192, 256])
def test_cudnn_serves_large_heads_as_exactly_as_xla(size):
    keys = jax.random.split(jax.random.key(0), 4)
    arrays = [jax.random.normal(key, (2, 200, 2, size), jnp.bfloat16) for key in keys]

    def slopes(implementation, dtype):
        q, k, v, d_out = (x.astype(dtype) for x in arrays)
        out, pull = jax.vjp(lambda *x: dense_attention(*x, implementation=implementation), q, k, v)
        return out, *pull(d_out)

    for one, two in zip(slopes("cudnn", "bfloat16"), slopes("xla", "float32"), strict=True):
        one, two = (np.asarray(x, np.float32) for x in (one, two))
        assert np.linalg.norm(one - two) < 2**-7 * np.linalg.norm(two)
