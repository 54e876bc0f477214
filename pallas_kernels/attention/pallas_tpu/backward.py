"""Backward pass: one kernel for queries, one for keys and values, both without atomic additions."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.attention.pallas_tpu.forward import LOG2E, across, matmul
from pallas_kernels.attention.pallas_tpu.lists import Lists
from pallas_kernels.attention.pallas_tpu.tiles import LANES
from pallas_kernels.attention.pallas_tpu.walk import (
    Operands,
    Options,
    Part,
    Tile,
    column,
    over_tiles,
)


class Inputs(NamedTuple):
    """What gradients are computed from; `X` is batch times heads, which `Y` divides.

    Attributes:
        q: Queries, up to the end of the last block; `D` is a multiple of 128.
        k: Keys, likewise.
        v: Values.
        d_out: Cotangent of the attended values, in the dtype of `q`.
        lse: Log-sum-exp of the scores; +inf for queries that do not count.
        delta: What is subtracted from `d_out . v`; 0 for queries that do not count.
    """

    q: Float[Array, "X Q D"]
    k: Float[Array, "Y K D"]
    v: Float[Array, "Y K D"]
    d_out: Float[Array, "X Q D"]
    lse: Float[Array, "X Q"]
    delta: Float[Array, "X Q"]


def backward_q(
    inputs: Inputs, lists: Lists, scale: float, options: Options
) -> Float[Array, "X Q D"]:
    """Returns the gradient of queries.

    Args:
        inputs: The arrays.
        lists: What is attended to.
        scale: Factor of the scores, positive.
        options: How the kernel runs.
    """
    q, k, v, d_out, lse, delta = inputs
    tile, factor = options.tiles.q, scale * LOG2E

    def body(tile: Tile) -> None:
        (q_ref, d_out_ref), (d_q,), (acc, lse_ref, delta_ref) = tile.tiled, tile.outs, tile.scratch
        acc[...] = jnp.zeros(acc.shape, jnp.float32)
        lse_ref[...] = column(tile.numbers[0]) * LOG2E
        delta_ref[...] = column(tile.numbers[1])

        def add(parts: list[Part]) -> None:
            for part in parts:
                keys, values = part.gathered
                scores = part.mask(matmul(q_ref[...], keys, 1, 1))
                weights = jnp.exp2(scores * factor - across(lse_ref[...], scores))
                slopes = matmul(d_out_ref[...], values, 1, 1)
                slopes = slopes - across(delta_ref[...], slopes)
                acc[...] += matmul((weights * slopes).astype(keys.dtype), keys, 1, 0)

        tile.walk(add)
        d_q[...] = (acc[...] * scale).astype(d_q.dtype)

    numbers = [x.reshape(len(q), -1, 1, tile) for x in (lse, delta)]
    (d_q,) = over_tiles(
        body,
        "block_sparse_attention_backward_q",
        lists,
        Operands((q, d_out), numbers, (k, v), ()),
        [jax.ShapeDtypeStruct(q.shape, q.dtype)],
        [(tile, q.shape[2]), (tile, LANES), (tile, LANES)],
        options,
        products=3,
    )
    return d_q


def backward_kv(
    inputs: Inputs, lists: Lists, scale: float, options: Options
) -> tuple[Float[Array, "X K D"], Float[Array, "X K D"]]:
    """Returns the gradients of keys and values, one for each head of the queries.

    Args:
        inputs: The arrays.
        lists: Those of the transposed mask: of queries, for each block of keys.
        scale: Factor of the scores, positive.
        options: How the kernel runs; its `q` are keys, its `kv` queries.
    """
    q, k, v, d_out, lse, delta = inputs
    tiles, factor = options.tiles, scale * LOG2E
    heads, length, size = len(q), k.shape[1], k.shape[2]

    def body(tile: Tile) -> None:
        (k_ref, v_ref), (d_k, d_v), (k_acc, v_acc) = tile.tiled, tile.outs, tile.scratch
        k_acc[...] = jnp.zeros(k_acc.shape, jnp.float32)
        v_acc[...] = jnp.zeros(v_acc.shape, jnp.float32)

        def add(parts: list[Part]) -> None:
            for part in parts:
                queries, d_outs = part.gathered
                lse, delta = part.tables
                scores = part.mask(matmul(k_ref[...], queries, 1, 1))
                weights = jnp.exp2(scores * factor - lse * LOG2E)
                v_acc[...] += matmul(weights.astype(d_outs.dtype), d_outs, 1, 0)
                slopes = matmul(v_ref[...], d_outs, 1, 1) - delta
                k_acc[...] += matmul((weights * slopes).astype(queries.dtype), queries, 1, 0)

        tile.walk(add)
        d_k[...] = (k_acc[...] * scale).astype(d_k.dtype)
        d_v[...] = v_acc[...].astype(d_v.dtype)

    tables = [x.reshape(heads, -1, tiles.kv) for x in (lse, delta)]
    kind: Any = k.dtype if len(k) == heads else jnp.float32  # shared ones are added up
    out = jax.ShapeDtypeStruct((heads, length, size), kind)
    return over_tiles(
        body,
        "block_sparse_attention_backward_kv",
        lists,
        Operands((k, v), (), (q, d_out), tables),
        [out, out],
        [(tiles.q, size), (tiles.q, size)],
        options,
        products=4,
    )
