"""The optimizer: which parameters are matrices, schedules, steps of the published size."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jvdm.configs import nano
from jvdm.training.optimizer import Optimizer, matrix_axes


def test_muon_takes_the_matrices_of_the_layers_and_nothing_else():
    shapes = jax.eval_shape(nano.config().objective.init, jax.random.key(0))
    axes = jax.tree_util.tree_leaves_with_path(
        matrix_axes(shapes), is_leaf=lambda leaf: leaf is None or hasattr(leaf, "output_axis")
    )
    chosen = {jax.tree_util.keystr(path) for path, leaf in axes if leaf is not None}
    assert "['model']['layers']['self_attention']['qkv']['kernel_0']" in chosen
    assert "['text']['layers_0']['q']['kernel']" in chosen
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        name = jax.tree_util.keystr(path)
        assert (name in chosen) == ("layers" in name and "kernel" in name), name
        assert name not in chosen or leaf.ndim in (2, 3)


def test_the_rate_warms_up_stays_and_falls():
    rate: Any = Optimizer(learning_rate=1.0, warmup_steps=10, decay_fraction=0.5).schedule(100)
    values = np.array([rate(step) for step in range(101)])
    np.testing.assert_allclose(values[:10], np.arange(1, 11) / 10, rtol=1e-6)
    np.testing.assert_allclose(values[10:51], 1.0)
    assert (np.diff(values[50:]) < 0).all()
    np.testing.assert_allclose(values[100], 0.02, rtol=1e-5)
    assert all(np.isfinite(float(Optimizer().schedule(n)(0))) for n in (1, 2, 5))  # pyright: ignore


@pytest.mark.parametrize("shape", [(3, 16, 64), (3, 64, 16), (32, 32)])
def test_a_muon_step_has_the_size_of_an_adam_step(shape):
    optimizer = Optimizer(learning_rate=1e-3, warmup_steps=1, weight_decay=0.0, clip_norm=1e9)
    transform = optimizer.build(10)
    params: Any = {"layers": {"kernel": jnp.zeros(shape)}, "out": {"kernel": jnp.zeros(shape)}}
    grads = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(0), leaf.shape), params)
    updates: Any = jax.jit(transform.update)(grads, transform.init(params), params)[0]
    size = {name: float(jnp.sqrt(jnp.mean(tree["kernel"] ** 2))) for name, tree in updates.items()}
    # Adam's first step is the sign of the gradient; optax's Muon gives it Nesterov momentum,
    # by which the first step is longer: 0.9 * 0.1 / (1 - 0.9^2) + 1.
    np.testing.assert_allclose(size["out"], 1.4737e-3, rtol=0.01)
    # 0.2 sqrt(max) times an orthogonal matrix, whose entries have the size 1 / sqrt(max);
    # Newton-Schulz leaves singular values between 0.7 and 1.2.
    np.testing.assert_allclose(size["layers"] / (2 * 0.2 * 1e-3), 1.0, atol=0.3)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_both_kinds_solve_a_regression(kind):
    target = jax.random.normal(jax.random.key(0), (8, 8))
    params: Any = {"layers": {"kernel": jnp.zeros((8, 8))}}
    transform = Optimizer(kind=kind, learning_rate=0.03, warmup_steps=5).build(200)

    @jax.jit
    def step(params, state):
        def error(p):
            return jnp.mean((p["layers"]["kernel"] - target) ** 2)

        value, grads = jax.value_and_grad(error)(params)
        updates, state = transform.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state, values = transform.init(params), []
    for _ in range(200):
        params, state, value = step(params, state)
        values.append(float(value))
    assert values[-1] < 0.02 * values[0]


def test_gradients_are_clipped_by_their_global_norm():
    transform = Optimizer(kind="adamw", clip_norm=1.0, weight_decay=0.0).build(10)
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones(3)}
    grads = jax.tree.map(lambda leaf: 100.0 * leaf, params)
    scaled = jax.tree.map(lambda leaf: 1e4 * leaf, params)
    one, other = (transform.update(g, transform.init(params), params)[1] for g in (grads, scaled))
    chex.assert_trees_all_close(one, other, rtol=1e-5)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_only_kernels_decay(kind):
    shapes = jax.eval_shape(nano.config().objective.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    optimizer = Optimizer(kind=kind, learning_rate=0.5, warmup_steps=1, weight_decay=0.1)
    transform = optimizer.build(10)
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates: Any = jax.jit(transform.update)(nothing, transform.init(params), params)[0]
    for path, leaf in jax.tree_util.tree_leaves_with_path(updates):
        name = jax.tree_util.keystr(path)
        wanted = -0.05 if "kernel" in name else 0.0
        np.testing.assert_allclose(leaf, wanted, rtol=1e-5, err_msg=name)
