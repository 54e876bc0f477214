"""Operations counted from what is traced."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from jvdm.configs import tiny_t2v
from jvdm.parallel.mesh import DATA, data_mesh
from jvdm.products import product_flops
from jvdm.training.objective import TrainCall
from jvdm.training.state import init_state
from jvdm.training.step import make_step
from tests.training import pair, toy

A, B = jnp.zeros((3, 4)), jnp.zeros((4, 5))
ONCE = 2 * 3 * 4 * 5


@jax.custom_vjp
def exact(a, b):
    return a @ b


exact.defvjp(lambda a, b: (a @ b, (a, b)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))


def split(a, b):
    specs = (PartitionSpec(), PartitionSpec(None, DATA)), PartitionSpec(None, DATA)
    return jax.shard_map(jnp.matmul, mesh=data_mesh(4), in_specs=specs[0], out_specs=specs[1])(a, b)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda a, b: a @ b, ONCE),
        (lambda a, b: jax.lax.scan(lambda c, _: (c, a @ b), 0.0, None, length=7)[1], 7 * ONCE),
        (lambda a, b: jax.jit(jnp.matmul)(a, b) + jnp.exp(a @ b), 2 * ONCE),
        (lambda a, b: jax.checkpoint(jnp.matmul)(a, b), ONCE),
        (exact, ONCE),
        (lambda a, b: jax.grad(lambda a: exact(a, b).sum())(a), 3 * ONCE),
        (lambda a, b: jax.vmap(lambda row: row @ b)(a), ONCE),
        (lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: 2 * (a @ b)), ONCE),
        (lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b @ b.T @ b, lambda: a @ b), 3 * ONCE),
    ],
)
def test_products_are_counted_wherever_they_are(function, expected):
    assert product_flops(function, A, B) == expected


def test_products_of_all_devices_are_counted():
    assert product_flops(split, A, jnp.zeros((4, 8))) == 2 * 3 * 4 * 8


def test_convolutions_are_counted():
    x, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 5))

    def convolve(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    assert product_flops(convolve, x, kernel) == 2 * (2 * 8 * 8 * 5) * 27


ATTENTION = 2 * 2 * 16 * 12 * 4 * (8 + 8)  # two products for each of 2 clips, 4 heads


def test_attention_is_counted():
    q, k = jnp.zeros((2, 16, 4, 8)), jnp.zeros((2, 12, 4, 8))
    assert product_flops(jax.nn.dot_product_attention, q, k, k) == ATTENTION


def test_attention_in_one_kernel_is_counted(monkeypatch):
    """On a GPU attention is one operation, which this machine can trace but not run."""
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000, raising=False)
    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: True, raising=False)
    monkeypatch.setattr(
        fused, "check_is_flash_attention", lambda *given, **named: None, raising=False
    )
    q, k = (jnp.zeros((2, length, 4, 8), jnp.bfloat16) for length in (16, 12))

    def attend(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")

    names = {eqn.primitive.name for eqn in jax.make_jaxpr(attend)(q, k, k).jaxpr.eqns}
    assert "dot_general" not in names
    assert product_flops(attend, q, k, k) == ATTENTION


def test_a_step_of_the_video_model_needs_what_its_layers_need():
    objective = tiny_t2v.config().objective
    params = jax.eval_shape(objective.init, jax.random.key(0))
    latents = jax.ShapeDtypeStruct((4, 9, 16, 16, 16), jnp.float32)
    batch = {"latents": latents, "tokens": jax.ShapeDtypeStruct((4, 64), jnp.int32)}
    call = TrainCall(jnp.int32(0), jax.random.key(0), params, {})
    counted = product_flops(objective.loss, params, batch, call)
    # Ten layers of 512 channels, 576 tokens and 64 words; text and ends come on top.
    tokens, width = 9 * 8 * 8, 512
    products = 14 * tokens * width**2 + 2 * 64 * width**2
    layers = 4 * 2 * 10 * (products + 2 * tokens * (tokens + 64) * width)
    assert 1.0 < counted / layers < 1.03


def step_flops(experiment, transform, data):
    step = make_step(experiment.objective, experiment.source, transform, 8, 0.99)
    state = jax.eval_shape(lambda: init_state(experiment.objective, transform, 0))
    return step.flops({}, state, data)


class Turned(toy.HostLines):
    """A batch that takes a product to make: an autoencoder's, say."""

    def draw(self, data, step, batch_size):
        return {"x": data.x @ jnp.eye(4), "y": data.y}, data


def test_making_the_batch_is_no_work_of_the_model():
    plain = toy.experiment()
    turned = dataclasses.replace(plain, source=Turned())
    data = plain.source.start(0, None, data_mesh(1))
    transform = plain.optimizer.build(40)
    assert step_flops(turned, transform, data) == step_flops(plain, transform, data)


def test_a_step_is_three_losses_or_its_own_update():
    line = toy.experiment()
    data = line.source.start(0, None, data_mesh(1))
    forward = 2 * 8 * (4 * 16 + 16)
    assert step_flops(line, line.optimizer.build(40), data) == 3 * forward
    two: Any = pair.experiment()
    data = two.source.start(0, None, data_mesh(1))
    transform = two.objective.transform(two.optimizer, 40)
    one_pass = 2 * 8 * (2 * 32 + 32)  # of the critic over a batch
    # The critic's turn is the dearer one: it sees two batches, and its slope besides.
    assert 6 * one_pass <= step_flops(two, transform, data) < 16 * one_pass
