"""VideoDiT with the one-pass norms of `pallas_kernels`, interpreted, is VideoDiT without them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.attention import Dense
from jvdm.models import attention, modulation
from jvdm.samplers import Call
from pallas_kernels import gate_gradients, head_norm, residual_norm, short_attention
from tests.models.small import DIT, SHAPE, conditions

MODEL = DIT.clone(width=64, depth=2, head_dim=32, rotary_axes=(8, 12, 12))


class ReadsKeys(Dense):
    """Changes keys before they have positions, as policies may that keep them."""

    def attended(self, q, k, v, state, call):
        k = k * jnp.linspace(0.5, 1.5, k.shape[3], dtype=k.dtype)[(None,) * 3]
        return super().attended(q, k, v, state, call)


@pytest.mark.parametrize("reads", [False, True])
def test_predictions_and_gradients_are_those_without_kernels(reads, monkeypatch):
    model = MODEL.clone(policy=ReadsKeys()) if reads else MODEL
    x = jax.random.normal(jax.random.key(1), (*SHAPE[:2], 8, 8, SHAPE[4]))
    call, told = Call.at(jnp.linspace(0.1, 0.9, 2 * SHAPE[1]).reshape(2, -1)), conditions()
    params = jax.jit(model.init)(jax.random.key(0), x, call, told)
    params = jax.tree.map(lambda w: w + 0.1 * jnp.cos(jnp.arange(w.size).reshape(w.shape)), params)

    def run():
        def loss(params, x):
            made = model.apply(params, x, call, told)[0]
            return jnp.sum(jnp.sin(made)), made

        both = jax.value_and_grad(loss, (0, 1), has_aux=True)
        return jax.jit(loss if reads else both)(params, x)

    plain, used = run(), set()
    kernels: list[Any] = [
        (modulation, residual_norm),
        (modulation, gate_gradients),
        (attention, head_norm),
        (attention, short_attention),
    ]
    for module, kernel in kernels:

        @functools.wraps(kernel)
        def interpreted(*given, kernel=kernel):
            used.add(kernel.__name__)
            how = "xla" if kernel is short_attention else "interpret"  # heads are too small for it
            return kernel(*given, implementation=how)

        monkeypatch.setattr(module, kernel.__name__, interpreted)
    monkeypatch.setattr(modulation, "serves_residual_norm", lambda x: True)
    monkeypatch.setattr(attention, "serves_head_norm", lambda x, table: True)
    monkeypatch.setattr(attention, "serves_short_attention", lambda q, k: True)
    for ours, theirs in zip(*map(jax.tree.leaves, (run(), plain)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-4 * np.abs(theirs).max())
    assert used == {"residual_norm", "head_norm", "short_attention"} | (
        set() if reads else {"gate_gradients"}
    )
