"""Keys of a cache before new ones: read where they are, as if they were joined."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import BlockMask, Past, block_sparse_attention, cached_attention, prepared
from pallas_kernels.attention import api, mosaic_gpu
from pallas_kernels.attention.mosaic_gpu import tiles
from tests.pallas_kernels.cases import random_mask
from tests.pallas_kernels.hopper import compiled_for_h200
from tests.pallas_kernels.test_block_sparse import B, D, N, inputs, softmax_attention
from tests.pallas_kernels.test_mosaic_gpu import KERNEL, on_hopper, problem


def test_an_entry_of_a_stack_comes_before_the_keys_of_a_call():
    q, k, v = inputs(kv_len=6)
    stacks = jax.random.normal(jax.random.key(1), (2, 3, B, 7, N, D))
    lengths = jnp.array([[5, 2, 5, 1]])  # 7 keys of the cache in blocks of 5, and 6 new ones
    mask = BlockMask.full(11, 16, 4, 5)
    mask = dataclasses.replace(mask, kv_lengths=lengths)

    def attended(stacks, k, v):
        return cached_attention(q, k, v, Past(stacks[0], stacks[1], jnp.int32(2)), mask)

    whole = [jnp.concatenate([x, new], 1) for x, new in zip(stacks[:, 2], (k, v), strict=True)]
    expected = softmax_attention(q, whole[0], whole[1], True)
    np.testing.assert_allclose(attended(stacks, k, v), expected, rtol=1e-5, atol=1e-5)
    of_stacks, *of_new = jax.grad(lambda *x: jnp.sum(attended(*x) ** 2), (0, 1, 2))(stacks, k, v)
    assert not of_stacks[:, :2].any() and (of_stacks[:, 2] != 0).all()
    assert all((x != 0).all() for x in of_new)
    with pytest.raises(ValueError, match="the mask is for 11 queries and 16 keys, but there"):
        cached_attention(q, k[:, 1:], v[:, 1:], Past(stacks[0], stacks[1], jnp.int32(2)), mask)


def test_gradients_of_a_cache_go_to_its_entry_and_those_behind_it_to_the_new_keys():
    stacks = jax.random.normal(jax.random.key(1), (2, 3, B, 7, N, D))
    past = Past(stacks[0], stacks[1], jnp.int32(1))
    k, v = jax.random.normal(jax.random.key(2), (2, B, 6, N, D))

    def whole_of(k_stack, v_stack, k, v):
        return Past(k_stack, v_stack, past.row).before(k, v, 5)

    whole, back = jax.vjp(whole_of, stacks[0], stacks[1], k, v)
    d_whole = tuple(jnp.cos(x) for x in whole)
    expected = back(d_whole)
    d_past, *d_new = past.gradient(d_whole[0], d_whole[1], 5)
    for one, other in zip((*d_past[:2], *d_new), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def behind_a_cache(case="plain", rows=3):
    """Inputs of a case whose first keys are the second entry of a stack, and the mask of all.

    Places of the cache do not fill their last block.
    """
    _, (q, k, v, *_) = problem(case)
    stack = jax.random.normal(jax.random.key(4), (2, rows, q.shape[0], 200, *k.shape[2:]), k.dtype)
    past = Past(stack[0], stack[1], jnp.int32(1))
    before = past.length(128)
    mask = random_mask(
        5, q.shape[1], before + k.shape[1], 128, 128, lists=(2, q.shape[2]), cut=True, places=False
    )
    lengths = mask.kv_lengths.at[:, before // 128 - 1].set(200 % 128)
    return q, k, v, past, dataclasses.replace(mask, kv_lengths=lengths)


def test_a_cache_is_read_where_it_is(monkeypatch):
    monkeypatch.setattr(api, "_kernel", lambda name: KERNEL)
    monkeypatch.setattr(api, "_kernel_refusal", lambda *_: "")
    monkeypatch.setattr(mosaic_gpu, "_device", lambda: "NVIDIA H200")
    monkeypatch.setattr(tiles, "JOINED", (0, 0))
    q, k, v, past, mask = behind_a_cache()

    def lowered(past):
        traced = jax.jit(functools.partial(cached_attention, scale=0.1)).trace(q, k, v, past, mask)
        return traced.lower(lowering_platforms=("cuda",)).as_text()

    work = prepared(q, past, mask).work
    assert jax.tree.leaves(work) and work.kinds.divided
    joined = "tensor<2x768x2x128xbf16>"  # keys of the cache, of its last block, and new ones
    text = lowered(past)
    assert "custom_call @mosaic_gpu" in text and joined not in text
    odd = past._replace(k=past.k[:, :, :195], v=past.v[:, :, :195])
    assert joined in lowered(odd)  # its length is no multiple of 8


@pytest.mark.slow
def test_the_kernel_that_reads_a_cache_keeps_everything_in_registers(tmp_path, monkeypatch):
    monkeypatch.setattr(mosaic_gpu, "_device", lambda: "NVIDIA H200")
    q, k, v, past, mask = behind_a_cache()

    def attended(q, k, v, past, mask):
        return KERNEL.forward(q, k, v, mask, 0.1, past)

    (report,) = compiled_for_h200(attended, (q, k, v, past, mask), tmp_path, monkeypatch)
    assert "0 bytes spill stores, 0 bytes spill loads" in report and "C7512" not in report


@on_hopper
def test_a_cache_is_attended_to_as_if_it_were_joined(monkeypatch):
    monkeypatch.setattr(tiles, "JOINED", (0, 0))
    q, k, v, past, mask = behind_a_cache()

    def of(attend):
        return jax.jit(jax.value_and_grad(attend, (0, 1, 2, 3, 4)))(q, k, v, past.k, past.v)

    def cached(q, k, v, k_stack, v_stack):
        return jnp.sum(
            jnp.sin(cached_attention(q, k, v, Past(k_stack, v_stack, past.row), mask)), dtype="f4"
        )

    def joined(q, k, v, k_stack, v_stack):
        keys, values = Past(k_stack, v_stack, past.row).before(k, v, 128)
        return jnp.sum(jnp.sin(block_sparse_attention(q, keys, values, mask)), dtype="f4")

    for one, other in zip(jax.tree.leaves(of(cached)), jax.tree.leaves(of(joined)), strict=True):
        np.testing.assert_array_equal(one, other)
