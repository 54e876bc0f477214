"""Shared layers: rotations, patches, modulation and its gradient."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.features import fold, rms_normalize, unfold
from jvdm.models.layers import FeedForward, Linear, TimeEmbedding, gelu, rotary_table, rotate
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
    cosine, _ = rotary_table(jnp.arange(2.0), 2, 2, (4, 6, 8), 100.0).tokens()
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


def test_gradients_have_the_number_types_of_what_they_are_of():
    """Vectors are in float32 where tokens are not, as in Wan; JAX hands on what it gets."""
    x, vector = jnp.ones((2, 3, 4, 8), jnp.bfloat16), jnp.ones((2, 3, 8))
    for function, given in ((gate, (x, vector)), (modulate, (x, vector, vector))):
        made, backward = jax.vjp(function, *given)
        assert [one.dtype for one in backward(made)] == [one.dtype for one in given]


@pytest.mark.parametrize("what", ["modulate", "gate"])
def test_modulation_has_the_values_and_the_gradient_of_its_formula(what):
    keys = jax.random.split(jax.random.key(0), 4)
    x, weight = (jax.random.normal(key, (2, 3, 4, 8)) for key in keys[:2])
    scale, shift = (jax.random.normal(key, (2, 3, 8)) for key in keys[2:])

    def spread(vector):
        return jnp.broadcast_to(vector[:, :, None], x.shape)

    formulas = {
        "modulate": (modulate, lambda x, s, b: rms_normalize(x) * (1 + spread(s)) + spread(b)),
        "gate": (lambda x, s, b: gate(x, s) + spread(b), lambda x, s, b: x * spread(s) + spread(b)),
    }
    values = [formula(x, scale, shift) for formula in formulas[what]]
    np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-6)
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


@pytest.mark.parametrize("size", [1e-2, 1.0, 1e3])
def test_norms_are_one_whatever_the_size_of_what_is_normed(size):
    """Also of a hundredth, to half a percent: features of a fresh network are as small."""
    normed = np.asarray(rms_normalize(size * jax.random.normal(jax.random.key(0), (5, 512))))
    np.testing.assert_allclose(np.sqrt((normed**2).mean(-1)), 1.0, rtol=6e-3)


def test_levels_turn_waves_from_a_thousand_radians_down_to_less_than_one():
    """Wave `i` of `n` turns by `1000 t / 10000^(i / n)`: the embedding that Diffusers has."""
    layer = TimeEmbedding(8, frequencies=4, dtype="float32")
    one = {"kernel": jnp.eye(8), "bias": jnp.zeros(8)}
    embed = jax.jit(lambda t: layer.apply({"params": {"hidden": one, "out": one}}, t))
    period = 2 * np.pi / 1000 * 10.0 ** np.arange(4)
    start = np.asarray(embed(jnp.zeros((1, 1))))[0, 0]
    quarter, half, whole = (
        np.asarray(embed(jnp.asarray(share * period[None])))[0] for share in (0.25, 0.5, 1.0)
    )
    cosines, opposite = (float(nn.silu(jnp.float32(value))) for value in (1, -1))
    np.testing.assert_allclose(start, [*[cosines] * 4, *[0.0] * 4], atol=1e-6)
    np.testing.assert_allclose(np.diagonal(whole[:, :4]), cosines, atol=1e-4)
    np.testing.assert_allclose(np.diagonal(half[:, :4]), opposite, atol=1e-4)
    np.testing.assert_allclose(np.diagonal(half[:, 4:]), 0.0, atol=1e-3)
    assert (
        np.asarray(embed(jnp.asarray(period[None] / 4)))[0][np.arange(4), 4:].diagonal() > 0.7
    ).all()


def test_a_fresh_layer_adds_a_third_of_what_it_is_given():
    """Its second product is scaled by .3, and a GELU leaves .65 of unit inputs."""
    x = jax.random.normal(jax.random.key(0), (64, 256))
    layer = FeedForward(dtype="float32")
    out: Any = layer.apply(layer.init(jax.random.key(1), x), x)
    assert 0.3 * 0.5 < float(jnp.std(out)) < 0.3 * 0.8
