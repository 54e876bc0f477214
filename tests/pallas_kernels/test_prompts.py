"""Attention to a prompt with the norm of queries: the program, interpreted, against XLA's form."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import KernelUnavailable, prompts, short_attention
from tests.pallas_kernels.hopper import compiled_for_h200


def drawn(dtype="float32", queries=128, keys=16, size=64):
    shapes = (3, queries, 2, size), (size,), (3, keys, 2, size), (3, keys, 2, size)
    each = jax.random.split(jax.random.key(0), len(shapes))
    q, gain, k, v = (jax.random.normal(key, shape) for key, shape in zip(each, shapes, strict=True))
    return (q.astype(dtype), 1 + gain, k.astype(dtype), v.astype(dtype)), jnp.array([1, keys, 5])


def both_passes(given, lengths, implementation):
    def loss(*given: Any):
        q, gain, k, v = given
        out = short_attention(q, gain, k, v, lengths, implementation)
        return jnp.sum(jnp.sin(3 * out.astype(jnp.float32))), out

    return jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)(*given)


def test_values_and_gradients_are_those_of_xla_and_padding_has_none():
    given, lengths = drawn()
    ours, plain = (
        jax.jit(lambda *given, how=how: both_passes(given, lengths, how))(*given)
        for how in ("interpret", "xla")
    )
    for one, other in zip(*map(jax.tree.leaves, (ours, plain)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * np.abs(other).max())
    assert not np.any(ours[1][3][2, 5:]) and np.all(np.any(ours[1][3][2, :5], -1))


@pytest.mark.parametrize(
    ("sizes", "why"),
    [({"keys": 24}, "24 keys"), ({"queries": 96}, "96 queries"), ({"size": 32}, "or 32 not 64")],
)
def test_other_sizes_are_refused(sizes, why):
    given, lengths = drawn(**sizes)
    with pytest.raises(KernelUnavailable, match=why):
        short_attention(*given, lengths, "interpret")


def test_the_kernel_is_refused_elsewhere_and_lowers_without_a_gpu(monkeypatch):
    given, lengths = drawn("bfloat16")
    if jax.default_backend() != "gpu":
        with pytest.raises(KernelUnavailable, match="triton: the default device is"):
            short_attention(*given, lengths, "triton")
    monkeypatch.setattr(prompts, "refusal_of_device", lambda q, groups: "")
    device = jax.sharding.AbstractDevice("NVIDIA H200", 132, "gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(lambda *given: both_passes(given, lengths, "triton")).trace(*given)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @__gpu$xla.gpu.triton") == 2


@pytest.mark.slow
def test_the_kernel_compiles_for_an_h200(tmp_path, monkeypatch):
    given, lengths = drawn("bfloat16", queries=576, keys=64)
    monkeypatch.setattr(prompts, "refusal_of_device", lambda q, groups: "")
    kernel = lambda *given: both_passes(given, lengths, "triton")  # noqa: E731
    compiled_for_h200(kernel, given, tmp_path, monkeypatch)
