"""Random masks of every kind and float64 attention, for the tests of all implementations."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import BlockMask


@functools.partial(jax.jit, static_argnums=2)
def from_map(blocks, partial, sizes) -> BlockMask:
    """Lists of a map, compiled as a whole; sizes are of blocks, then lengths, queries first."""
    names = ("block_q", "block_kv", "q_len", "kv_len")
    return BlockMask.from_dense(blocks, partial, **dict(zip(names, sizes, strict=True)))


# One program for each kind of mask, instead of one for each of its operations.
token_mask, to_dense = jax.jit(BlockMask.token_mask), jax.jit(BlockMask.to_dense)


def random_mask(seed, q_len, kv_len, block_q, block_kv, *, lists=(1, 1), cut=True, places=True):
    """A mask with empty rows, blocks in part, blocks cut short, tokens without a place."""
    draw = np.random.default_rng(seed)
    rows, columns = -(-q_len // block_q), -(-kv_len // block_kv)
    blocks = draw.random((*lists, rows, columns)) < 0.5
    blocks[..., 0, :] = False
    partial = draw.random(blocks.shape) < 0.5 if places else None
    sizes = (block_q, block_kv, q_len, kv_len)
    mask = dataclasses.replace(from_map(blocks, partial, sizes), causal_time=True)
    if places:
        q, kv = (draw.integers(-1, 4, (lists[0], n), np.int32) for n in (q_len, kv_len))
        times = {
            name: jnp.asarray(np.where(c < 0, -1, c << 20))
            for name, c in (("q_coords", q), ("kv_coords", kv))
        }
        mask = dataclasses.replace(mask, **times)
    if cut:
        short = draw.integers(0, block_kv + 1, (lists[0], columns), np.int32)
        few = draw.integers(0, block_q + 1, (lists[0], rows), np.int32)
        mask = dataclasses.replace(mask, kv_lengths=jnp.asarray(short), q_lengths=jnp.asarray(few))
    return mask


def random_inputs(seed, mask, *, batch=2, heads=4, kv_heads=2, size=8, dtype="float32"):
    """Queries, keys, values and cotangents of the output and of the log-sum-exp."""
    shapes = [(batch, n, h, size) for n, h in ((mask.q_len, heads), (mask.kv_len, kv_heads))]
    shapes = [shapes[0], shapes[1], shapes[1], shapes[0], (batch, heads, mask.q_len)]
    draw = np.random.default_rng(seed)
    return tuple(jnp.asarray(draw.standard_normal(shape), dtype) for shape in shapes)


def exact_attention(q, k, v, allowed):
    """Float64 attention and log-sum-exp under a mask of pairs, the slow way."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out, lse = np.zeros(q.shape), np.full(q.shape[:1] + q.shape[2:0:-1], -np.inf)
    allowed = np.broadcast_to(allowed, (q.shape[0], q.shape[2], q.shape[1], k.shape[1]))
    for b, n, i in np.ndindex(*lse.shape):
        seen, head = allowed[b, n, i], n * k.shape[2] // q.shape[2]
        if seen.any():
            scores = k[b, seen, head] @ q[b, i, n] / np.sqrt(q.shape[-1])
            lse[b, n, i] = np.logaddexp.reduce(scores)
            out[b, i, n] = np.exp(scores - lse[b, n, i]) @ v[b, seen, head]
    return out, lse


def gradients(attend, inputs):
    """Gradients of output and log-sum-exp together, for the cotangents in `inputs`."""
    *arrays, d_out, d_lse = inputs

    def total(*arrays):
        out, lse = attend(*arrays)
        lse = jnp.where(lse > -jnp.inf, lse, 0.0)
        return jnp.vdot(out.astype("float32"), d_out) + jnp.vdot(lse, d_lse)

    return jax.jit(jax.grad(total, (0, 1, 2)))(*arrays)
