"""Windowed attention is attention under the mask of pairs that its words describe."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import dense_attention, windowed_attention


def inputs(length, kv_heads=2):
    draws = np.random.default_rng(0)
    shapes = ((2, length, 2, 8), (2, length, kv_heads, 8), (2, length, kv_heads, 8))
    return [jnp.asarray(draws.normal(size=shape), jnp.float32) for shape in shapes]


def pairs(grid, window, tile, causal_time, text_len):
    """The mask, token by token: no tiles but in the centre of a window."""
    places = np.indices(grid).reshape(3, -1)
    allowed = np.ones((places.shape[1],) * 2, bool)
    for axis in range(3):
        count = -(-grid[axis] // tile[axis])
        size = min(-(-window[axis] // tile[axis]), count)
        own = places[axis] // tile[axis]
        first = np.minimum(np.maximum(own - size // 2, 0), count - size)[:, None]
        allowed &= (first <= own[None]) & (own[None] < first + size)
    if causal_time:
        allowed &= places[0][:, None] >= places[0][None]
    return np.pad(allowed, [(0, text_len)] * 2, constant_values=True)


CASES: list[Any] = [
    ((4, 4, 4), (2, 2, 2), (1, 2, 2), False, 0),
    ((3, 5, 7), (1, 4, 6), (1, 2, 2), False, 0),
    ((3, 5, 7), (3, 4, 6), (1, 2, 3), True, 5),
    ((5, 4, 6), (4, 2, 6), (2, 2, 2), True, 0),
    ((5, 3, 4), (4, 3, 2), (2, 3, 2), True, 13),
    ((2, 3, 3), (9, 9, 9), (1, 3, 3), False, 9),
]


@pytest.mark.parametrize("implementation", ["xla", "reference"])
@pytest.mark.parametrize("case", CASES)
def test_windows_are_the_mask_of_pairs(case, implementation):
    q, k, v = inputs(int(np.prod(case[0])) + case[4])
    exact = dense_attention(q, k, v, mask=jnp.asarray(pairs(*case))[None, None])
    run: Any = functools.partial(windowed_attention, return_lse=True, implementation=implementation)
    out, lse = jax.jit(lambda q, k, v: run(q, k, v, *case))(q, k, v)
    np.testing.assert_allclose(out, exact, atol=3e-6)
    scores = np.einsum("bqnd,bknd->bnqk", q, k) / np.sqrt(8)
    levels = jax.nn.logsumexp(jnp.asarray(np.where(pairs(*case), scores, -np.inf)), 3)
    np.testing.assert_allclose(lse, levels, atol=3e-6)


def test_gradients_pass_through_the_order():
    case = CASES[2]
    q, k, v = inputs(int(np.prod(case[0])) + case[4], kv_heads=1)

    def ours(q, k, v):
        return (windowed_attention(q, k, v, *case) ** 2).sum()

    def exact(q, k, v):
        return (dense_attention(q, k, v, mask=jnp.asarray(pairs(*case))[None, None]) ** 2).sum()

    slopes = (jax.jit(jax.grad(f, (0, 1, 2)))(q, k, v) for f in (ours, exact))
    for one, two in zip(*slopes, strict=True):
        np.testing.assert_allclose(one, two, atol=3e-5)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (((2, 4, 4), (1, 3, 2), (1, 2, 2)), "a window of 3 tokens along rows with tiles of 2"),
        (((2, 4, 4), (0, 2, 2), (1, 2, 2)), "a window of 0 tokens along time"),
        (((2, 4, 4), (1, 2, 2), (1, 5, 2)), "tiles of .1, 5, 2. tokens on a grid"),
        (((2, 4, 5), (1, 2, 2), (1, 2, 2)), "32 queries and 32 keys, but a grid of .2, 4, 5."),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: Any, message):
    with pytest.raises(ValueError, match=message):
        q, k, v = inputs(32)
        windowed_attention(q, k, v, *sizes)
