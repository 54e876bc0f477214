"""Norms in one pass: the programs, interpreted, against XLA's form, and what they lower to."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import KernelUnavailable, gate_gradients, head_norm, norm_silu, residual_norm
from pallas_kernels import norms as module
from pallas_kernels.attention import planned
from tests.pallas_kernels.hopper import compiled_for_h200

SHAPE = (3, 5, 12, 64)  # videos, frames, tokens of a frame, width: three tiles of four tokens
EACH, ALL = SHAPE[:2] + SHAPE[3:], (1, 1, 64)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(module, "TILE", 4 * 64)


def drawn(*shapes) -> list[Any]:
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [
        None if shape is None else jax.random.normal(key, shape)
        for key, shape in zip(keys, shapes, strict=True)
    ]


def agree(function, inputs, reads=(True, True)):
    """Asserts that values and gradients are XLA's, of float32 up to the order of sums."""

    def both_passes(implementation):
        def run(inputs):
            return jax.tree.leaves(function(*inputs, implementation=implementation))

        def loss(inputs):
            backs = drawn(*(out.shape for out in jax.eval_shape(run, inputs)))
            given = zip(run(inputs), backs, reads, strict=False)
            return sum((jnp.vdot(out, back) for out, back, read in given if read), jnp.zeros(()))

        return jax.tree.leaves(
            jax.jit(lambda inputs: (run(inputs), jax.grad(loss)(inputs)))(inputs)
        )

    for ours, plain in zip(both_passes("interpret"), both_passes("xla"), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5 * np.abs(plain).max())


@pytest.mark.parametrize(
    ("factor", "shift", "residual", "gate", "reads"),
    [
        (EACH, EACH, None, None, (True, True)),
        (ALL, None, SHAPE, EACH, (True, True)),
        (EACH, EACH, SHAPE, EACH, (False, True)),
        (EACH, EACH, SHAPE, None, (True, False)),
        ((3, 1, 64), (3, 1, 64), None, EACH, (True, True)),
    ],
)
def test_sum_norm_and_gradients_are_xlas(factor, shift, residual, gate, reads):
    agree(residual_norm, drawn(SHAPE, factor, shift, residual, gate), reads)


@pytest.mark.parametrize(("ahead", "reads"), [(0, (True, True)), (2, (False, True))])
def test_silu_of_a_norm_has_its_first_frame_ahead(ahead, reads):
    def run(x, factor, implementation: Any):
        return norm_silu(x, factor, ahead, implementation)

    agree(run, drawn((3, 5, 4, 16, 64), (64,)), reads)  # two parts of a frame
    x, factor = drawn((1, 3, 4, 16, 64), (64,))
    assert run(x, factor, "interpret")[1].shape[1] == 3 + ahead


@pytest.mark.parametrize("turned", [False, True])
def test_heads_are_normalised_and_turned(turned):
    x, gain, angles = drawn((3, 24, 2, 32), (32,), (24, 16))
    table = (jnp.cos(angles), jnp.sin(angles)) if turned else None

    def run(x, gain, implementation):
        return head_norm(x, gain, table, implementation)

    agree(run, [x, gain])


def test_gradients_of_a_gate_are_those_of_a_product():
    gradient, x, gate = drawn(SHAPE, SHAPE, EACH)
    _, back = jax.vjp(lambda x, gate: x * gate[:, :, None], x, gate)
    for implementation in ("interpret", "xla"):
        ours = gate_gradients(gradient, x, gate, implementation)
        for one, other in zip(ours, back(gradient), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_vmap_remat_and_scan_change_nothing():
    y, factor, shift, residual, gate = drawn(SHAPE, EACH, EACH, SHAPE, EACH)

    def loss(y, implementation):
        def layer(y, _):
            s, h = residual_norm(y, factor, shift, residual, gate, implementation)
            return h + s, None

        return jnp.sum(jnp.square(jax.lax.scan(jax.checkpoint(layer), y, None, length=2)[0]))

    pairs = jnp.stack([y, 2 * y])
    ours, plain = (
        jax.jit(jax.vmap(jax.grad(lambda y, how=how: loss(y, how))))(pairs)
        for how in ("interpret", "xla")
    )
    np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5 * np.abs(plain).max())


def test_what_no_kernel_serves_is_refused_and_by_itself_is_xlas(monkeypatch):
    y, factor = drawn(SHAPE, ALL)
    if jax.default_backend() != "gpu":
        with pytest.raises(KernelUnavailable, match="triton: the default device is"):
            residual_norm(y, factor, implementation="triton")
        text = jax.jit(residual_norm).lower(y, factor).as_text()
        assert "custom_call" not in text
    for wrong, why in (((1, 1, 4, 96), "power of two from 64"), ((1, 1, 6, 64), "do not divide")):
        with pytest.raises(KernelUnavailable, match=why):
            residual_norm(jnp.zeros(wrong), jnp.ones((1, 1, wrong[3])), implementation="interpret")
    with pytest.raises(KernelUnavailable, match="no powers of two"):
        head_norm(jnp.zeros((1, 8, 3, 32)), jnp.ones(32), implementation="interpret")
    with pytest.raises(KernelUnavailable, match="are not those of 8 tokens"):
        table = jnp.ones((8, 32)), jnp.ones((8, 32))  # each head has its own
        head_norm(jnp.zeros((1, 8, 2, 32)), jnp.ones(32), table, "interpret")


def test_a_hopper_gpu_that_is_full_takes_the_kernels_unless_it_is_one_of_many(monkeypatch):
    monkeypatch.setattr(planned, "backend", lambda: "gpu")
    monkeypatch.setattr(planned, "capability", lambda: "9.0")
    y = jnp.zeros((64, 8, 4, 64), jnp.bfloat16)
    heads = jnp.zeros((64, 64, 1, 32), jnp.bfloat16)
    assert module.serves_residual_norm(y) and module.serves_head_norm(heads)
    assert module.serves_norm_silu(jnp.zeros((64, 4, 8, 8, 64), jnp.bfloat16))
    for other in (y[:63], y.astype(jnp.float32)):
        assert not module.serves_residual_norm(other)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((2,), ("data",))):
        assert not module.serves_residual_norm(y) and not module.serves_head_norm(heads)
    monkeypatch.setattr(planned, "is_planned", lambda: True)
    assert not module.serves_residual_norm(y)


def trained(y, heads, video, factor):
    """Returns values and gradients of all that have kernels, at widths of shipped models."""

    def loss(y, heads, video):
        vectors = jnp.ones((*y.shape[:2], y.shape[3]))
        s, h = residual_norm(y, factor, None, y, vectors, "triton")
        s, h = residual_norm(h, vectors, vectors, s, None, "triton")
        angles = jnp.ones((heads.shape[1], heads.shape[3] // 2))
        turned = head_norm(heads, jnp.ones(heads.shape[3]), (angles, angles), "triton")
        made = s, h, turned, *norm_silu(video, jnp.ones(video.shape[4]), 2, "triton")
        return sum(jnp.sum(x.astype(jnp.float32)) for x in made)

    gated = gate_gradients(y, y, jnp.ones((*y.shape[:2], y.shape[3])), "triton")
    return gated, jax.value_and_grad(loss, (0, 1, 2))(y, heads, video)


@pytest.fixture
def real(monkeypatch):
    """Inputs of `trained`, with kernels wherever it is lowered."""
    monkeypatch.setattr(module, "TILE", 4096)
    monkeypatch.setattr(module, "refusal_of_device", lambda x, groups: "")
    shapes = (2, 9, 64, 512), (2, 576, 8, 64), (2, 5, 64, 64, 128)
    return *(jnp.zeros(shape, jnp.bfloat16) for shape in shapes), jnp.ones((1, 1, 512))


def test_kernels_lower_without_a_gpu(real):
    device = jax.sharding.AbstractDevice("NVIDIA H200", 132, "gpu")  # newer JAX wants to be told
    mesh = jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        text = jax.jit(trained).trace(*real).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @__gpu$xla.gpu.triton") == 9


@pytest.mark.slow
def test_kernels_compile_for_an_h200(real, tmp_path, monkeypatch):
    compiled_for_h200(trained, real, tmp_path, monkeypatch)
