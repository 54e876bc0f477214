"""Skip-softmax: what is left out, in the words of its definition; all implementations alike."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import (
    BlockMask,
    KernelUnavailable,
    block_sparse_attention,
    explain,
    left_out,
    skipped_blocks,
)
from pallas_kernels.attention.cudnn import Cudnn
from pallas_kernels.attention.kernel import attend
from pallas_kernels.attention.mosaic_gpu import MosaicGPU
from pallas_kernels.attention.pallas_tpu import PallasTPU
from pallas_kernels.attention.pallas_tpu.tiles import Limits
from tests.pallas_kernels.cases import random_inputs, random_mask, token_mask

# One block of the mask is what the kernel computes at once, so that both decide alike.
KERNEL = PallasTPU(interpret=True, limits=Limits(queries=128, keys=128, parts=2))
SEED = 7
SIZES = (260, 600, 128, 128)


def sharp(seed, mask, **options) -> Any:
    """Inputs whose scores differ much from block to block."""
    q, k, v, *_ = random_inputs(seed, mask, **options)
    levels = np.resize([1.0, 0.05, 3.0, 0.05, 0.1], -(-mask.kv_len // mask.block_kv))
    return q * 2, k * jnp.asarray(levels.repeat(mask.block_kv)[None, : mask.kv_len, None, None]), v


def with_limit(mask, limit) -> BlockMask:
    shape = mask.kv_counts.shape
    return dataclasses.replace(mask, skip_log2=jnp.full(shape, limit, jnp.float32))


@functools.partial(jax.jit, static_argnums=4)
def answers(q, k, v, mask, implementation) -> Any:
    if implementation == "kernel":
        return attend(KERNEL, q, k, v, mask, q.shape[-1] ** -0.5)
    return block_sparse_attention(q, k, v, mask, return_lse=True, implementation=implementation)


def by_hand(q, k, mask, limit):
    """Walks through every list as an online softmax does; float64."""
    q, k = np.asarray(q, np.float64), np.asarray(k, np.float64)
    allowed = np.asarray(token_mask(mask))
    shape = (q.shape[0], q.shape[2], *mask.grid)
    allowed = np.broadcast_to(allowed, (*shape[:2], q.shape[1], k.shape[1]))
    gone = np.zeros(shape, bool)
    for b, n, i in np.ndindex(*shape[:3]):
        lists = (b % mask.kv_counts.shape[0], n % mask.kv_counts.shape[1], i)
        rows = slice(i * mask.block_q, (i + 1) * mask.block_q)
        running = np.full(len(q[b, rows, n]), -np.inf)
        for j in np.asarray(mask.kv_indices)[lists][: int(mask.kv_counts[lists])]:
            keys = slice(j * mask.block_kv, (j + 1) * mask.block_kv)
            head = n * k.shape[2] // q.shape[2]
            scores = q[b, rows, n] @ k[b, keys, head].T / np.sqrt(q.shape[3])
            best = np.where(allowed[b, n, rows, keys], scores, -np.inf).max(1, initial=-np.inf)
            needed = (best > -np.inf) & (best >= running + limit * np.log(2))
            gone[b, n, i, j] = not needed.any()
            running = np.maximum(running, best)
    return gone


@pytest.mark.parametrize("case", [{}, {"lists": (2, 4)}, {"cut": False, "places": False}])
def test_a_block_is_skipped_where_all_its_queries_have_seen_far_better(case):
    mask = random_mask(SEED, *SIZES, **case)
    q, k, v = sharp(3, mask)
    limited = with_limit(mask, -1.0)
    gone = np.asarray(jax.jit(skipped_blocks)(q, k, limited))
    expected = by_hand(q, k, mask, -1.0)
    np.testing.assert_array_equal(gone, expected)
    assert 0.05 < gone.mean() < 0.6
    rest = cut_to(mask, jnp.asarray(np.asarray(mask.to_dense()) & ~gone))
    for implementation in ("reference", "xla", "kernel"):
        ours = answers(q, k, v, limited, implementation)
        plain = answers(q, k, v, rest, "reference")
        for one, two in zip(ours, plain, strict=True):
            np.testing.assert_allclose(one, two, atol=5e-6, err_msg=implementation)


def cut_to(mask, kept) -> BlockMask:
    """The mask whose lists are cut to a map."""
    sizes = {name: getattr(mask, name) for name in ("block_q", "block_kv", "q_len", "kv_len")}
    partial = None if mask.kv_full_counts is None else kept & mask._partial()
    cut = BlockMask.from_dense(kept, partial, **sizes)
    lists = ("kv_indices", "kv_counts", "kv_full_counts")
    return dataclasses.replace(mask, **{name: getattr(cut, name) for name in lists})


@pytest.mark.parametrize("implementation", ["reference", "xla", "kernel"])
def test_a_limit_of_minus_infinity_changes_no_bit(implementation):
    mask = random_mask(4, *SIZES, lists=(2, 4))
    given = sharp(4, mask)
    plain = answers(*given, mask, implementation)
    for one, two in zip(
        answers(*given, with_limit(mask, -jnp.inf), implementation), plain, strict=True
    ):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("limit", [-1.0, -4.0, -8.0])
def test_the_error_is_at_most_twice_what_is_left_out(limit):
    mask = BlockMask.full(256, 640, 128, 128)
    q, k, v = sharp(5, mask)
    limited = with_limit(mask, limit)
    full, lse = answers(q, k, v, mask, "reference")
    some, kept = answers(q, k, v, limited, "reference")
    lost = 1 - np.exp(np.asarray(kept - lse)).swapaxes(1, 2)[..., None]
    assert (np.abs(full - some) <= 2 * lost * np.abs(v).max() + 1e-5).all()
    # No key that is left out weighs more than 2 ** limit of the greatest weight.
    assert lost.max() <= 640 * 2.0**limit


def test_the_order_of_a_list_decides_and_the_best_first_skips_most():
    mask = BlockMask.full(64, 640, 64, 64)
    q, k, v = sharp(6, mask, heads=2)
    best = jnp.argsort(-jnp.abs(k).max((0, 2, 3)).reshape(10, 64).max(1))
    ordered = dataclasses.replace(mask, kv_indices=best[None, None, None])
    counts = [float(skipped_blocks(q, k, with_limit(one, -2.0)).mean()) for one in (mask, ordered)]
    assert counts[0] < counts[1]


def test_blocks_of_queries_have_limits_of_their_own():
    mask = BlockMask.full(256, 640, 128, 128)
    q, k, v = sharp(7, mask)
    limits = jnp.array([-2.0, -jnp.inf])[None, None]
    one = dataclasses.replace(mask, skip_log2=limits)
    gone = np.asarray(skipped_blocks(q, k, one))
    assert gone[:, :, 0].any() and not gone[:, :, 1].any()
    for implementation in ("reference", "xla", "kernel"):
        ours, plain = (answers(q, k, v, x, implementation)[0] for x in (one, mask))
        np.testing.assert_array_equal(ours[:, 128:], plain[:, 128:])
        assert np.abs(ours[:, :128] - plain[:, :128]).max() > 1e-4
    coarse: Any = one.coarsen(2, 1).skip_log2
    assert coarse.shape == (1, 1, 1) and np.isneginf(coarse).all()


def test_gradients_go_through_what_is_left_and_kernels_refuse_them():
    mask = BlockMask.full(256, 640, 128, 128)
    q, k, v = sharp(8, mask)
    limited = with_limit(mask, -2.0)

    def slopes(implementation):
        return jax.grad(lambda *x: jnp.sum(answers(*x, limited, implementation)[0] ** 2), (0, 1, 2))

    for one, two in zip(slopes("xla")(q, k, v), slopes("reference")(q, k, v), strict=True):
        np.testing.assert_allclose(one, two, atol=2e-4)
    with pytest.raises(KernelUnavailable, match=r"no gradients where .*skip_log2.*'xla'"):
        slopes("kernel")(q, k, v)


def test_kernels_that_cannot_skip_say_so(monkeypatch):
    mask = with_limit(BlockMask.full(128, 256), -2.0)
    q = jnp.zeros((1, 128, 1, 128), jnp.bfloat16)
    k = jnp.zeros((1, 256, 1, 128), jnp.bfloat16)
    monkeypatch.setattr(MosaicGPU, "refusal_of_inputs", lambda *a: "")
    coarse = with_limit(BlockMask.full(128, 256, 256, 128), -2.0)
    plain = dataclasses.replace(coarse, skip_log2=None)
    assert "skip_log2" in MosaicGPU().refusal(q, k, coarse)
    assert not MosaicGPU().refusal(q, k, plain) and not MosaicGPU().refusal(q, k, mask)
    device = type("device", (), {"compute_capability": "10.0", "device_kind": "B200"})
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert "skip_log2" in Cudnn().refusal(q, k, mask)
    assert explain(q, k, mask).implementation in ("reference", "xla")


def test_long_sequences_that_no_kernel_serves_are_computed_row_by_row():
    mask = with_limit(BlockMask.full(75_600, 75_600), -2.0)
    q = jax.ShapeDtypeStruct((1, 75_600, 12, 128), jnp.bfloat16)  # Wan 2.1 1.3B at 720p
    assert explain(q, q, mask).implementation == "xla"
    assert "of 6.9e+10 pairs" in explain(q, q, mask).reason
    attended = jax.jit(block_sparse_attention).lower(q, q, q, mask).compile().memory_analysis()
    assert attended is not None and attended.temp_size_in_bytes < 8 * 2**30


def test_limits_are_powers_of_two_of_the_weights():
    peaks = jnp.log(jnp.array([[1.0, 0.3, 0.2]]))
    gone = left_out(peaks, jnp.array(-2.0))
    assert gone.tolist() == [False, False, True]  # a quarter lies between
