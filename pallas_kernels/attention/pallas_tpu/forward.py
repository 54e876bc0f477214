"""Forward pass."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from pallas_kernels.attention.pallas_tpu.lists import Lists
from pallas_kernels.attention.pallas_tpu.tiles import LANES
from pallas_kernels.attention.pallas_tpu.walk import (
    MASKED,
    Operands,
    Options,
    Part,
    Tile,
    column,
    over_tiles,
)

LOG2E = math.log2(math.e)


def forward(
    q: Float[Array, "X Q D"],
    k: Float[Array, "Y K D"],
    v: Float[Array, "Y K D"],
    lists: Lists,
    scale: float,
    options: Options,
    limits: Float[Array, "X Q"] | None = None,
) -> tuple[Float[Array, "X Q D"], Float[Array, "X Q"]]:
    """Returns attended values and the log-sum-exp of the scores.

    Args:
        q: Queries of all heads of all batch rows, up to the end of the last block; `D` is a
            multiple of 128.
        k: Keys, up to the end of the last block; `Y` divides `X`.
        v: Values.
        lists: What is attended to.
        scale: Factor of the scores, positive.
        options: How the kernel runs.
        limits: By how much, in powers of two, the best score of a query must be below its best
            before, for the products with values of a part of a step to be skipped: where that is
            so for all queries of a tile. +inf for queries that do not count.
    """
    heads, length, size = q.shape
    tile, factor = options.tiles.q, scale * LOG2E
    numbers = [] if limits is None else [limits.reshape(heads, -1, 1, tile)]

    def body(tile: Tile) -> None:
        (q_ref,), (out, lse) = tile.tiled, tile.outs
        peak, total, acc = tile.scratch
        peak[...] = jnp.full(peak.shape, MASKED, jnp.float32)
        total[...] = jnp.zeros(total.shape, jnp.float32)
        acc[...] = jnp.zeros(acc.shape, jnp.float32)

        def add(parts: list[Part]) -> None:
            # All products with keys come first: those of a part run under the softmax of another.
            scores = [part.mask(matmul(q_ref[...], part.gathered[0], 1, 1)) for part in parts]
            for x, part in zip(scores, parts, strict=True):
                step = functools.partial(_accumulate, x, part.gathered[1], peak, total, acc, factor)
                if limits is None:
                    step()
                else:
                    pl.when(_needed(x, peak, column(tile.numbers[0]), factor))(step)

        tile.walk(add)
        _finish(out, lse, peak, total, acc, factor)

    out, lse = over_tiles(
        body,
        "block_sparse_attention_forward",
        lists,
        Operands((q,), numbers, (k, v), ()),
        [
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((heads, length // tile, 1, tile), jnp.float32),
        ],
        [(tile, LANES), (tile, LANES), (tile, size)],
        options,
        products=2,
    )
    return out, lse.reshape(heads, length)


def _needed(scores: Array, peak: Any, limits: Array, factor: float) -> Array:
    """Returns whether any query has a score that is not far below those before it."""
    best = scores.max(1, keepdims=True)
    fall = (best - peak[...]) * factor
    near = (best > MASKED / 2) & (fall >= limits)
    return jnp.max(jnp.where(near, 1.0, 0.0)) > 0.0


def _accumulate(
    scores: Array, values: Array, peak: Any, total: Any, acc: Any, factor: float
) -> None:
    """Adds the values of a step, by the weights that follow from its scores."""
    before = peak[...]
    now = jnp.maximum(before, scores.max(1, keepdims=True))
    weights = jnp.exp2((scores - across(now, scores)) * factor)
    fade = jnp.exp2((before - now) * factor)
    total[...] = fade * total[...] + _lane_sums(weights)
    peak[...] = now
    acc[...] = across(fade, acc) * acc[...] + matmul(weights.astype(values.dtype), values, 1, 0)


def _finish(out: Any, lse: Any, peak: Any, total: Any, acc: Any, factor: float) -> None:
    """Writes a tile; rows that attended to nothing are 0, and -inf."""
    some = peak[...] > MASKED / 2
    sums = jnp.where(some, total[...].sum(1, keepdims=True), 1.0)
    out[...] = (acc[...] * across(jnp.where(some, 1.0 / sums, 0.0), acc)).astype(out.dtype)
    numbers = peak[...] * (factor / LOG2E) + jnp.log(sums)
    lse[...] = jnp.where(some, numbers, -jnp.inf).T[:1]


def _lane_sums(weights: Array) -> Array:
    """Adds columns that one lane holds: `[q, keys]` to `[q, 128]`."""
    parts = [weights[:, i : i + LANES] for i in range(0, weights.shape[1], LANES)]
    return sum(parts[1:], start=parts[0])


def across(column: Array, like: Any) -> Array:
    """Repeats a column that fills 128 lanes: cheaper than to spread one lane over all."""
    return jnp.tile(column, (1, like.shape[1] // LANES))


def matmul(one: Array, two: Array, axis: int, other: int) -> Array:
    """Multiplies along an axis of each, adding in float32."""
    exactly = lax.Precision.HIGHEST if one.dtype == jnp.float32 else None
    return lax.dot_general(
        one,
        two,
        (((axis,), (other,)), ((), ())),
        precision=exactly,
        preferred_element_type=jnp.float32,
    )
