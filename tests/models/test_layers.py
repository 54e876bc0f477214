"""Shared layers: rotations, patches, modulation and its gradient."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.features import fold, rms_normalize, unfold
from jvdm.models.layers import (
    Linear,
    gelu,
    rotary_table,
    rotate,
)
from jvdm.models.modulation import gate, modulate


def test_patches_come_back():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 6, 5))
    np.testing.assert_array_equal(unfold(fold(x, 2), 2), x)


def test_rotation_keeps_lengths_and_depends_on_distance_alone():
    table = rotary_table(jnp.arange(6.0), 1, 1, (8, 0, 0), 100.0)
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 2, 8))
    turned_q = rotate(jnp.broadcast_to(q, (1, 6, 2, 8)), table)
    turned_k = rotate(jnp.broadcast_to(k, (1, 6, 2, 8)), table)
    norms = jnp.linalg.norm(turned_q, axis=-1)
    np.testing.assert_allclose(norms, jnp.broadcast_to(norms[:, :1], norms.shape), rtol=1e-5)
    scores = jnp.einsum("bqnd,bknd->nqk", turned_q, turned_k)
    for distance in range(-5, 6):
        for head in scores:
            along = np.diagonal(head, distance)
            np.testing.assert_allclose(along, np.full_like(along, along[0]), atol=1e-5)
    assert np.ptp(scores[0, 0]) > 0.1


def test_frames_rows_and_columns_turn_their_own_features():
    cosine, _ = rotary_table(jnp.arange(2.0), 2, 2, (4, 6, 8), 100.0)
    grid = np.asarray(cosine).reshape(2, 2, 2, -1)
    for axis, part in enumerate((slice(0, 2), slice(2, 5), slice(5, 9))):
        changes = np.abs(np.diff(grid, axis=axis)).max(axis=(0, 1, 2))
        assert set(np.flatnonzero(changes)) == set(range(part.start, part.stop))


def test_one_product_for_many_kernels_is_many_products():
    x = jax.random.normal(jax.random.key(0), (3, 4, 8))
    layer = Linear((5, 7), "float32")
    params: Any = layer.init(jax.random.key(1), x)["params"]
    assert {name: leaf.shape for name, leaf in params.items()} == {
        "kernel_0": (8, 5),
        "kernel_1": (8, 7),
    }
    for y, kernel in zip(layer.bind({"params": params})(x), params.values(), strict=True):
        np.testing.assert_allclose(y, x @ kernel, atol=1e-6)


@pytest.mark.parametrize("what", ["modulate", "gate"])
def test_modulation_has_the_gradient_of_its_formula(what):
    keys = jax.random.split(jax.random.key(0), 4)
    x, weight = (jax.random.normal(key, (2, 3, 4, 8)) for key in keys[:2])
    scale, shift = (jax.random.normal(key, (2, 3, 8)) for key in keys[2:])

    def spread(vector):
        return jnp.broadcast_to(vector[:, :, None], x.shape)

    formulas = {
        "modulate": (modulate, lambda x, s, b: rms_normalize(x) * (1 + spread(s)) + spread(b)),
        "gate": (lambda x, s, b: gate(x, s) + spread(b), lambda x, s, b: x * spread(s) + spread(b)),
    }
    ours, plain = (
        jax.grad(lambda *args, f=formula: jnp.vdot(f(*args), weight), (0, 1, 2))(x, scale, shift)
        for formula in formulas[what]
    )
    chex.assert_trees_all_close(ours, plain, atol=1e-5)


def test_gelu_has_the_values_and_the_slope_of_flax():
    x = jnp.linspace(-4.0, 4.0, 33)
    np.testing.assert_array_equal(gelu(x), nn.gelu(x))
    ours, theirs = (jax.grad(lambda x, f=f: jnp.sum(f(x) ** 2))(x) for f in (gelu, nn.gelu))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)
