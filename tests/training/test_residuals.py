"""What a pass forward leaves, beside what is there to be counted by hand and what XLA holds."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jvdm.training.residuals import again, left
from pallas_kernels import dense_attention, traced_for_gpu

ROWS, WIDTH = 512, 64
WHOLE = 4 * ROWS * WIDTH
TOKENS = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)
KERNEL = jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)


def of(loss, *given):
    """Bytes that a loss leaves for the gradients of all it is given."""
    jaxpr = jax.make_jaxpr(lambda *given: jax.vjp(loss, *given)[1])(*given).jaxpr
    return left(jaxpr, len(jaxpr.invars))


def gelu(x, up, down):
    return jnp.sum(jax.nn.gelu(x @ up) @ down)


def test_the_slope_of_an_activation_is_made_again():
    """Of GELU JAX keeps what it is made of: what goes in and what comes out is enough."""
    assert of(gelu, TOKENS, KERNEL, KERNEL) == 2 * WHOLE


def test_what_is_given_is_held_by_others():
    def loss(x, kernel):
        return jnp.sum((x @ kernel) * x)

    jaxpr = jax.make_jaxpr(lambda *given: jax.vjp(loss, *given)[1])(TOKENS, KERNEL).jaxpr
    assert left(jaxpr, 2) == WHOLE
    assert left(jaxpr, 0) == 2 * WHOLE + 4 * WIDTH**2


def test_what_is_smaller_than_its_sources_is_kept_itself():
    def loss(x, kernel):
        return jnp.sum((x @ kernel)[:, :2] ** 3)

    assert of(loss, TOKENS, KERNEL) == WHOLE * 2 // WIDTH


@pytest.mark.parametrize("unroll", [1, 4])
def test_nothing_is_made_again_through_a_loop(unroll):
    """A loop hands its stacks on as JAX has them; without one turns follow each other."""

    def loss(x, kernels):
        def turn(x, kernel):
            return x + jax.nn.gelu(jnp.sin(x) @ kernel), None

        return jnp.sum(jax.lax.scan(turn, x, kernels, unroll=unroll)[0])

    kernels = jax.ShapeDtypeStruct((4, WIDTH, WIDTH), jnp.float32)
    kept = of(loss, TOKENS, kernels)
    if unroll == 4:
        assert kept == 11 * WHOLE  # products, what they read, and what three turns hand on
    else:
        assert kept > 1.5 * 11 * WHOLE


def test_layers_that_are_computed_again_leave_what_goes_into_them():
    again = jax.checkpoint(gelu)
    assert of(lambda x, up, down: again(x @ up, up, down), TOKENS, KERNEL, KERNEL) == WHOLE


def test_the_dearest_part_that_is_computed_again_counts_where_it_has_a_gradient():
    """One of a teacher is made again for no one."""
    wide = jax.ShapeDtypeStruct((WIDTH, 2 * WIDTH), jnp.float32)
    back = jax.ShapeDtypeStruct((2 * WIDTH, WIDTH), jnp.float32)
    part = jax.checkpoint(gelu)

    def loss(own, x, teacher):
        return part(x, *own[0]) + part(x, *own[1]) - part(x, *teacher)

    small, large = (KERNEL, KERNEL), (wide, back)
    for teacher in (small, large):
        given = ((small, small), TOKENS, teacher)
        forward = jax.make_jaxpr(loss)(*given).jaxpr
        both = jax.make_jaxpr(lambda own, *rest: jax.vjp(lambda own: loss(own, *rest), own)[1])
        assert again(forward, both(*given).jaxpr) == 2 * WHOLE
        everything = jax.make_jaxpr(lambda *given: jax.vjp(loss, *given)[1])(*given).jaxpr
        assert again(forward, everything) == (2 if teacher is small else 4) * WHOLE


def test_attention_of_a_gpu_leaves_no_scores():
    shape = jax.ShapeDtypeStruct((2, 256, 4, 64), jnp.bfloat16)

    def loss(q, k, v):  # none of which is given
        q, k, v = (jnp.sort(x, axis=1) for x in (q, k, v))
        return jnp.sum(dense_attention(q, k, v).astype(jnp.float32))

    with traced_for_gpu():
        kept = of(loss, shape, shape, shape)
    numbers, rows = 2 * 256 * 4 * 64, 2 * 256 * 4
    order = 3 * 4 * numbers  # of sorting
    lists = kept - order - 4 * 2 * numbers - 4 * rows
    assert 0 <= lists < 200
    assert of(loss, shape, shape, shape) > kept + 4 * 2 * 4 * 256 * 256


def test_xla_holds_about_as_much():
    """Three layers with norms, compiled for CPUs, which has what one layer needs backward too."""

    def norm(x):
        return (x - x.mean(1, keepdims=True)) * jax.lax.rsqrt(x.var(1, keepdims=True) + 1e-6)

    def loss(kernels, x):
        for up, down in kernels:
            x = x + jax.nn.gelu(norm(x) @ up, approximate=True) @ down
        return jnp.mean(norm(x) ** 2)

    x, hidden = jax.ShapeDtypeStruct((16384, 128), jnp.float32), 4 * 16384 * 512
    up = jax.ShapeDtypeStruct((128, 512), jnp.float32)
    down = jax.ShapeDtypeStruct((512, 128), jnp.float32)
    given = ([(up, down)] * 3, x)
    compiled = jax.jit(jax.grad(loss)).lower(*given).compile()
    sizes: Any = compiled.memory_analysis()
    holds = sizes.temp_size_in_bytes
    assert of(loss, *given) < holds < of(loss, *given) + 3 * hidden
    listed = jax.eval_shape(lambda *given: jax.vjp(loss, *given)[1], *given)
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(listed)) > 1.5 * holds
