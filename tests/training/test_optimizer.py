"""The optimizer: which parameters are matrices, schedules, steps of the published size."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jvdm.configs import nano
from jvdm.parallel import data_mesh, using
from jvdm.training.optimizer import Optimizer, kinds, newton_schulz, orthogonal


def test_muon_takes_the_matrices_of_the_layers_and_nothing_else():
    shapes = jax.eval_shape(nano.config().objective.init, jax.random.key(0))
    found = jax.tree_util.tree_leaves_with_path(kinds(shapes))
    chosen = {jax.tree_util.keystr(path) for path, kind in found if kind == "matrix"}
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


@pytest.mark.parametrize("steps", [0, 1])
def test_a_run_without_warmup_begins_at_the_peak(steps):
    rate: Any = Optimizer(learning_rate=1.0, warmup_steps=steps, decay_fraction=0.5).schedule(100)
    assert [float(rate(step)) for step in (0, 1, 40)] == [1.0, 1.0, 1.0]


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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(3, 8, 16), (2, 64, 64), (1, 48, 192)])
def test_singular_values_come_near_one_and_singular_vectors_stay(shape, dtype):
    """Within the band of Muon's authors, .7 to 1.2, where they were at least a fiftieth."""
    matrices = jax.random.normal(jax.random.key(0), shape)
    left, sizes, right = np.linalg.svd(np.asarray(matrices), full_matrices=False)
    made = np.asarray(newton_schulz(matrices.astype(dtype)), np.float32)
    now = np.einsum("nki,nkl,nil->ni", left, made, right)
    large = sizes > 0.02 * np.linalg.norm(sizes, axis=1, keepdims=True)
    assert large.mean() > 0.8 and now[large].min() > 0.66 and now.max() < 1.22
    rest = made - np.einsum("nki,ni,nil->nkl", left, now, right)
    assert np.abs(rest).max() < (0.03 if dtype == "bfloat16" else 1e-4)


def test_every_matrix_is_its_own_whatever_else_has_its_shape():
    """Stacks, single matrices and turned ones are one batch; none changes another one."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = {"stack": (3, 8, 16), "single": (8, 16), "turned": (2, 16, 8), "square": (8, 8)}
    tree = {
        name: jax.random.normal(key, shape) * 10.0**place
        for place, (key, (name, shape)) in enumerate(zip(keys, shapes.items(), strict=True))
    }
    made = orthogonal(tree, "float32")
    for name, leaf in tree.items():
        assert made[name].shape == leaf.shape
        each = leaf if leaf.ndim == 3 else leaf[None]
        alone = [orthogonal({"a": one}, "float32")["a"] for one in each]
        np.testing.assert_allclose(made[name], jnp.stack(alone).reshape(leaf.shape), atol=1e-4)
        back = orthogonal({"a": leaf.mT}, "float32")["a"].mT
        np.testing.assert_allclose(made[name], back, atol=1e-4)


def test_matrices_of_one_shape_are_one_batch_of_products():
    """Five turns of three products for each shape, however many layers and parts have it."""
    shapes = jax.eval_shape(nano.config().objective.init, jax.random.key(0))
    transform = Optimizer().build(10)
    state = jax.eval_shape(transform.init, shapes)
    program = jax.make_jaxpr(transform.update)(shapes, state, shapes)
    products = [line for line in str(program).splitlines() if "dot_general" in line]
    matrices = [
        tuple(sorted(leaf.shape[-2:]))
        for leaf, kind in zip(*map(jax.tree.leaves, (shapes, kinds(shapes))), strict=True)
        if kind == "matrix"
    ]
    assert len(products) == 15 * len(set(matrices)) < 5 * len(matrices)
    assert all("bf16" in line for line in products)


def test_devices_share_matrices_and_momenta_stay_in_the_type_of_parameters():
    mesh = data_mesh(4)
    tree = {"layers": {"kernel": jax.random.normal(jax.random.key(0), (8, 16, 24))}}

    def made(gradient, **settings):
        transform = Optimizer(**settings).build(10)
        return transform.update(gradient, transform.init(gradient), gradient)

    exact = functools.partial(made, matrix_dtype="float32")
    alone = jax.jit(exact)(tree)[0]
    with using(mesh):
        program = jax.jit(exact).lower(tree).compile()
    assert "f32[2,16,24]" in str(program.as_text())  # two of eight on each
    chex.assert_trees_all_close(program(tree)[0], alone, rtol=1e-4, atol=1e-8)
    state = jax.tree.leaves(jax.eval_shape(made, tree)[1])
    assert {leaf.dtype.name for leaf in state} == {"float32", "int32"}


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


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_gradients_are_clipped_by_their_global_norm(kind):
    transform = Optimizer(kind=kind, clip_norm=2.0, weight_decay=0.0).build(10)
    params: Any = {"layers": {"kernel": jnp.ones((2, 2))}, "b": jnp.ones(3)}
    grads: Any = {"layers": {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}, "b": jnp.arange(3.0)}
    norm = optax.tree.norm(grads)

    def after(size):
        scaled = jax.tree.map(lambda leaf: size / norm * leaf, grads)
        return transform.update(scaled, transform.init(params), params)[1]

    chex.assert_trees_all_close(after(2.0), after(1e4), rtol=1e-5)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(after(1.9), after(2.0), rtol=1e-5)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_adam_forgets_the_size_of_a_gradient_in_a_hundred_steps(kind):
    """After one gradient the first moment falls by .9 a step and the second by .99, exactly."""
    optimizer = Optimizer(kind=kind, warmup_steps=1, weight_decay=0.0, clip_norm=1e9)
    transform = optimizer.build(10_000)
    params: Any = {"out": {"kernel": jnp.ones((2, 2))}}

    def step(state, gradient):
        updates: Any
        updates, state = transform.update({"out": {"kernel": gradient}}, state, params)
        return state, updates["out"]["kernel"][0, 0]

    gradients = jnp.zeros((100, 2, 2)).at[0].set(1.0)
    updates = np.asarray(jax.lax.scan(step, transform.init(params), gradients)[1], float)

    def root(step):
        return np.sqrt(0.99 ** (step - 1) / (1 - 0.99**step))

    np.testing.assert_allclose(updates[99] / updates[59], 0.9**40 * root(60) / root(100), rtol=5e-3)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_decay_follows_the_rate(kind):
    optimizer = Optimizer(kind=kind, learning_rate=0.5, warmup_steps=4, weight_decay=0.1)
    transform, rate = optimizer.build(10), optimizer.schedule(10)
    params: Any = {"layers": {"kernel": jnp.ones((2, 2))}, "out": {"kernel": jnp.ones((2, 2))}}
    nothing, state, left = jax.tree.map(jnp.zeros_like, params), transform.init(params), 1.0
    for step in range(10):
        updates, state = transform.update(nothing, state, params)
        params = optax.apply_updates(params, updates)
        left *= 1 - 0.1 * float(rate(step))  # pyright: ignore[reportArgumentType]
    for leaf in jax.tree.leaves(params):
        np.testing.assert_allclose(leaf, left, rtol=1e-5)


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
