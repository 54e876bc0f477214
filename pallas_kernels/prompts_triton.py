"""Attention of many normalised queries to few keys: what the kernels do, by Triton.

All keys of a head are one tile, so that a program goes over the queries once, forward and backward,
and nothing is kept but the inputs.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from pallas_kernels.norms_triton import Arrays, Launch, call, normal, normal_backward
from pallas_kernels.prompts import QUERIES


def forward(
    q: Float[Array, "B Q N D"],
    gain: Float[Array, " D"],
    k: Float[Array, "B K N D"],
    v: Float[Array, "B K N D"],
    lengths: Int[Array, " B"],
    interpret: bool,
) -> Float[Array, "B Q N D"]:
    """Returns attended values."""
    batch, queries, heads, size = q.shape
    scale = size**-0.5

    def short_attention_forward(ins: Arrays, outs: Arrays) -> None:
        video, head = pl.program_id(0), pl.program_id(1)
        k, v, keys, gains = _read(ins, video, head)

        def step(place: Array, carry: Array) -> Array:
            rows = pl.ds(place * QUERIES, QUERIES)
            unit, _ = normal(ins["q"][video, rows, head, :].astype(jnp.float32))
            q = (unit * gains).astype(k.dtype)
            weights = _weights(q, k, keys, scale).astype(v.dtype)
            outs["out"][video, rows, head, :] = _dot(weights, v).astype(v.dtype)
            return carry

        jax.lax.fori_loop(0, queries // QUERIES, step, 0)

    given = {"q": q, "gain": gain, "k": k, "v": v, "lengths": lengths}
    how = Launch((batch, heads), 4, 2, interpret)
    return call(short_attention_forward, given, {"out": _like(q)}, how)["out"]


def backward(
    q: Float[Array, "B Q N D"],
    gain: Float[Array, " D"],
    k: Float[Array, "B K N D"],
    v: Float[Array, "B K N D"],
    lengths: Int[Array, " B"],
    d_out: Float[Array, "B Q N D"],
    interpret: bool,
) -> tuple[Array, Float[Array, " D"], Array, Array]:
    """Returns the gradients of queries, gain, keys and values."""
    batch, queries, heads, size = q.shape
    count, scale = k.shape[1], size**-0.5

    def short_attention_backward(ins: Arrays, outs: Arrays) -> None:
        video, head = pl.program_id(0), pl.program_id(1)
        k, v, keys, gains = _read(ins, video, head)

        def step(place: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
            d_k, d_v, d_gain = sums
            rows = pl.ds(place * QUERIES, QUERIES)
            unit, inverse = normal(ins["q"][video, rows, head, :].astype(jnp.float32))
            q = (unit * gains).astype(k.dtype)
            weights = _weights(q, k, keys, scale)
            d_out = ins["d_out"][video, rows, head, :]
            d_v += _dot(weights.astype(v.dtype), d_out, 0, 0)
            d_weights = _dot(d_out, v, 1, 1)
            delta = jnp.sum(weights * d_weights, 1, keepdims=True)
            d_scores = (weights * (d_weights - delta) * scale).astype(k.dtype)
            d_k += _dot(d_scores, q, 0, 0)
            d_q = _dot(d_scores, k)
            d_gain += jnp.sum(d_q * unit, 0, keepdims=True)
            d_q = d_q * gains
            d_q = normal_backward(d_q, unit, inverse)
            outs["d_q"][video, rows, head, :] = d_q.astype(k.dtype)
            return d_k, d_v, d_gain

        zeros = jnp.zeros((count, size), jnp.float32)
        start = (zeros, zeros, jnp.zeros((1, size), jnp.float32))
        d_k, d_v, d_gain = jax.lax.fori_loop(0, queries // QUERIES, step, start)
        outs["d_k"][video, :, head, :] = d_k.astype(k.dtype)
        outs["d_v"][video, :, head, :] = d_v.astype(v.dtype)
        outs["d_gain"][video, pl.ds(head, 1), :] = d_gain

    given = {"q": q, "gain": gain, "k": k, "v": v, "lengths": lengths, "d_out": d_out}
    sums = jax.ShapeDtypeStruct((batch, heads, size), jnp.float32)
    outs = {"d_q": _like(q), "d_k": _like(k), "d_v": _like(v), "d_gain": sums}
    made = call(short_attention_backward, given, outs, Launch((batch, heads), 4, 2, interpret))
    return made["d_q"], jnp.sum(made["d_gain"], (0, 1)), made["d_k"], made["d_v"]


def _read(ins: Arrays, video: Array, head: Array) -> tuple[Array, Array, Array, Array]:
    """Returns keys and values of a head, which of them count, and the gain of queries."""
    k, v = ins["k"][video, :, head, :], ins["v"][video, :, head, :]
    keys = jax.lax.broadcasted_iota(jnp.int32, (1, k.shape[0]), 1) < ins["lengths"][video]
    return k, v, keys, ins["gain"][:][None, :]


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _dot(a: Array, b: Array, left: int = 1, right: int = 0) -> Array:
    """Sums products over these axes, in float32."""
    axes = (((left,), (right,)), ((), ()))
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def _weights(q: Array, k: Array, keys: Array, scale: float) -> Array:
    scores = _dot(q, k, 1, 1) * scale
    scores = jnp.where(keys, scores, -1e30)
    powers = jnp.exp(scores - jnp.max(scores, 1, keepdims=True))
    return powers / jnp.sum(powers, 1, keepdims=True)
