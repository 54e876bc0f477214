"""What every implementation answers, and what a mask can become."""

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import (
    BlockMask,
    block_mass,
    block_sparse_attention,
    dense_attention,
    explain,
    merge,
)
from pallas_kernels.attention import api
from pallas_kernels.attention.pallas_tpu import PallasTPU
from tests.pallas_kernels.cases import (
    exact_attention,
    from_map,
    random_inputs,
    random_mask,
    to_dense,
    token_mask,
)

# Lengths, blocks and what a mask has; each kind compiles once, lists and places are what varies.
KINDS: dict[str, dict[str, Any]] = {
    "empty": {"sizes": (1, 3, 1, 32), "places": False},
    "every": {"sizes": (11, 14, 4, 5), "lists": (2, 4)},
    "places": {"sizes": (23, 9, 7, 3), "lists": (1, 4), "cut": False},
    "plain": {"sizes": (11, 14, 4, 5), "cut": False, "places": False},
}
KV_HEADS = {"empty": 2, "every": 2, "places": 4, "plain": 1}
kinds, seeds = st.sampled_from(list(KINDS)), st.integers(0, 99)
implementations = st.sampled_from(["reference", "xla"])


def mask_of(kind: str, seed: int) -> BlockMask:
    kind_of = dict(KINDS[kind])
    return random_mask(seed, *kind_of.pop("sizes"), **kind_of)


@functools.partial(jax.jit, static_argnums=2)
def answers(inputs, mask, implementation) -> Any:
    """Values, their log-sum-exp, and the gradients of both together."""
    q, k, v, *cotangents = inputs

    def attend(q, k, v):
        return block_sparse_attention(q, k, v, mask, return_lse=True, implementation=implementation)

    both, pull = jax.vjp(attend, q, k, v)
    return (*both, pull(tuple(cotangents)))


@settings(max_examples=12)
@given(kinds, seeds, implementations)
def test_values_and_their_log_sum_exp_are_exact(kind, seed, implementation):
    mask = mask_of(kind, seed)
    inputs = random_inputs(1, mask, kv_heads=KV_HEADS[kind])
    out, lse, _ = answers(inputs, mask, implementation)
    q, k, v, *_ = inputs
    exact, exact_lse = exact_attention(q, k, v, token_mask(mask))
    np.testing.assert_allclose(out, exact, atol=2e-6)
    np.testing.assert_allclose(lse, exact_lse, atol=2e-6)


@settings(max_examples=12)
@given(kinds, seeds)
def test_gradients_of_both_outputs_are_those_of_the_reference(kind, seed):
    mask = mask_of(kind, seed)
    inputs = random_inputs(2, mask, kv_heads=KV_HEADS[kind])
    (*_, ours), (*_, expected) = (answers(inputs, mask, name) for name in ("xla", "reference"))
    for one, two in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, two, atol=5e-6)  # NaN is no number that is close


def test_the_gradient_of_the_reference_is_the_slope_of_exact_attention():
    mask = mask_of("every", 3)
    q, k, v, d_out, d_lse = random_inputs(3, mask)
    allowed = token_mask(mask)

    def total(*arrays):
        q, k, v = arrays
        out, lse = exact_attention(q, k, v, allowed)
        return np.vdot(out, d_out) + np.vdot(np.where(np.isfinite(lse), lse, 0), d_lse)

    for i, gradient in enumerate(answers((q, k, v, d_out, d_lse), mask, "reference")[2]):
        way = np.random.default_rng(i).standard_normal(gradient.shape)
        ends = []
        for step in (1e-5, -1e-5):
            moved = [np.asarray(x, np.float64) for x in (q, k, v)]
            moved[i] = moved[i] + step * way
            ends.append(total(*moved))
        np.testing.assert_allclose(np.vdot(gradient, way), (ends[0] - ends[1]) / 2e-5, rtol=1e-4)


@jax.jit
def merged(*parts) -> Any:
    """Both of the whole, and slopes."""
    slopes = jax.grad(lambda *p: merge(*p)[0].sum() + 0 * p[1][0, 0, 0], (0, 1, 2, 3))
    return merge(*parts), slopes(*parts)


@settings(max_examples=4)
@given(seeds, implementations)
def test_two_halves_of_the_keys_merge_to_the_whole(seed, implementation):
    mask = mask_of("every", seed)
    inputs = random_inputs(seed, mask)
    listed, partial = np.asarray(to_dense(mask)), np.asarray(marked(mask))
    parts = []
    for half in (np.arange(3) < 1, np.arange(3) >= 1):
        lists = from_map(listed & half, partial, (4, 5, 11, 14))
        names = ("kv_indices", "kv_counts", "kv_full_counts")
        part = dataclasses.replace(mask, **{name: getattr(lists, name) for name in names})
        parts += answers(inputs, part, implementation)[:2]
    joined, slopes = merged(*parts)
    for ours, whole in zip(joined, answers(inputs, mask, "reference")[:2], strict=True):
        np.testing.assert_allclose(ours, whole, atol=2e-6)
    assert all(np.isfinite(np.asarray(x)[..., 4:]).all() for x in slopes[1::2])
    assert all(np.isfinite(x).all() for x in slopes[::2])


marked = jax.jit(lambda mask: mask._partial())


@pytest.mark.parametrize(("q_len", "kv_len", "heads"), [(11, 14, 1), (3, 20, 4)])
def test_block_mass_is_the_mean_weight_of_blocks(q_len, kv_len, heads):
    run = jax.jit(lambda q, k, lse: block_mass(q, k, lse, 4, 5))
    mask = BlockMask.full(q_len, kv_len, 4, 5)
    q, k, v, *_ = random_inputs(4, mask, kv_heads=heads)
    _, lse = exact_attention(q, k, v, np.ones((q_len, kv_len), bool))
    ours = np.asarray(run(q, k, jnp.asarray(lse, jnp.float32)))
    for i, j in np.ndindex(*mask.grid):
        inside = np.zeros((q_len, kv_len), bool)
        inside[:, 5 * j : 5 * j + 5] = True
        part, level = exact_attention(q, k, v, inside)
        share = np.exp(level - lse)[..., 4 * i : 4 * i + 4]
        np.testing.assert_allclose(ours[:, :, i, j], share.mean(2), atol=2e-6)
    nothing = jnp.full(lse.shape, -jnp.inf)
    assert np.abs(run(q, k, nothing)).max() == 0


@jax.jit
def turned(mask) -> Any:
    return tuple(BlockMask.token_mask(x) for x in (mask.transpose(), mask.transpose().transpose()))


@settings(max_examples=12)
@given(kinds, seeds)
def test_a_transposed_mask_allows_the_same_pairs_from_the_other_side(kind, seed):
    mask = mask_of(kind, seed)
    once, twice = turned(mask)
    np.testing.assert_array_equal(once, np.swapaxes(token_mask(mask), 2, 3))
    np.testing.assert_array_equal(twice, token_mask(mask))


coarsen = jax.jit(BlockMask.coarsen, static_argnums=(1, 2))


@settings(max_examples=8)
@given(st.sampled_from([("every", (2, 3)), ("places", (3, 1)), ("places", (1, 2))]), seeds)
def test_a_coarser_mask_lists_what_the_finer_one_does(case, seed):
    kind, factors = case
    mask = mask_of(kind, seed)
    with pytest.raises(ValueError, match="q_lengths or kv_lengths has no coarser"):
        dataclasses.replace(mask, q_lengths=np.ones((1, mask.grid[0]), int)).coarsen()
    mask = dataclasses.replace(mask, q_lengths=None, kv_lengths=None)
    coarse, (rows, columns) = coarsen(mask, *factors), factors
    fine, lists = np.asarray(to_dense(mask)), np.asarray(to_dense(coarse))
    for i, j in np.ndindex(*coarse.grid):
        part = fine[..., rows * i : rows * i + rows, columns * j : columns * j + columns]
        np.testing.assert_array_equal(lists[..., i, j], part.any((2, 3)))
    pairs = np.asarray(token_mask(mask))
    assert not (pairs & ~np.asarray(token_mask(coarse))).any()
    np.testing.assert_array_equal(token_mask(coarsen(mask, 1, 1)), pairs)


def test_the_best_blocks_are_listed_until_the_mass_is_reached():
    scores = jnp.array([[[[0.1, 0.6, 0.1, 0.2], [0.25, 0.25, 0.25, 0.25]]]])
    sizes = {"q_len": 4, "kv_len": 8, "block_q": 2, "block_kv": 2}
    best = BlockMask.from_top(scores, count=2, **sizes)
    np.testing.assert_array_equal(best.to_dense()[0, 0], [[0, 1, 0, 1], [1, 1, 0, 0]])
    enough = BlockMask.from_top(scores, count=3, mass=0.55, **sizes)
    np.testing.assert_array_equal(enough.to_dense()[0, 0], [[0, 1, 0, 0], [1, 1, 1, 0]])
    assert enough.kv_indices.shape[3] == 3
    for wrong in ({"count": 5}, {"count": 0}, {"count": 1, "mass": 0.0}):
        with pytest.raises(ValueError, match="of 4 blocks up to a mass of"):
            BlockMask.from_top(scores, **wrong, **sizes)


def test_lists_at_fault_are_named():
    mask = BlockMask.full(4, 6, 2, 2)
    assert mask.check() is mask
    for faulty, text in (
        ({"kv_indices": mask.kv_indices.at[0, 0, 1, 2].set(3)}, "query block 1 has ids 0..3 of 3"),
        ({"kv_indices": mask.kv_indices.at[0, 0, 1, 2].set(0)}, r"twice: \[0, 1, 0\]"),
        ({"kv_counts": mask.kv_counts + 1}, "query block 0 counts 4 blocks, but has room for 3"),
    ):
        with pytest.raises(ValueError, match=text):
            dataclasses.replace(mask, **faulty).check()


def test_the_choice_is_explained():
    mask = BlockMask.full(4, 6, 2, 2)
    q, k, v, *_ = random_inputs(5, mask)
    assert explain(q, k, mask).implementation == "reference"
    assert "room for 3 of 3 key blocks" in explain(q, k, mask).reason
    assert explain(q, k, mask, "xla") == ("xla", "it was asked for")
    with pytest.raises(ValueError, match="4 heads of queries cannot share 3 heads"):
        explain(q, jnp.zeros((2, 6, 3, 8)), mask)
    both = jax.jit(functools.partial(block_sparse_attention, return_lse=True))
    out, lse = both(q, k, v, None)
    np.testing.assert_allclose(out, dense_attention(q, k, v), atol=2e-6)
    assert lse.shape == (2, 4, 4)


@pytest.mark.parametrize(
    ("length", "size", "devices", "asked", "flags", "served"),
    [
        (4096, 128, 1, {}, "", True),
        (4096, 96, 1, {}, "", True),
        (4095, 128, 1, {}, "", False),
        (5999, 64, 1, {}, "", False),
        (6000, 64, 1, {}, "", True),
        (32_000, 64, 1, {}, "", True),
        (4096, 128, 2, {}, "", False),
        (4096, 128, 1, {"deterministic": True}, "", False),
        (4096, 128, 1, {}, "--xla_gpu_deterministic_ops=true", False),
        (4096, 256, 1, {}, "", False),
    ],
)
def test_long_dense_attention_takes_full_lists_on_the_only_hopper_gpu(
    length, size, devices, asked, flags, served, monkeypatch
):
    q = jnp.zeros((1, length, 1, size), jnp.bfloat16)
    hopper = SimpleNamespace(compute_capability="9.0", device_kind="NVIDIA H200", core_count=132)
    monkeypatch.setattr(jax, "devices", lambda: [hopper] * devices)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setenv("XLA_FLAGS", flags)
    called = []
    monkeypatch.setattr(api, "attend", lambda *a: (called.append(a[4].density), (a[1], None))[1])
    monkeypatch.setattr(api, "dense_attention", lambda q, k, v, scale: q)
    assert block_sparse_attention(q, q, q, None, **asked) is q
    assert called == ([1.0] if served else [])


@pytest.mark.parametrize(("length", "sparse"), [(6000, False), (31_999, False), (32_000, True)])
def test_gradients_of_heads_of_64_are_those_of_what_is_faster_in_both_passes(
    length, sparse, monkeypatch
):
    """Forward the kernel is faster before, and serves what is not differentiated."""
    q = jnp.zeros((1, length, 1, 64), jnp.bfloat16)
    hopper = SimpleNamespace(compute_capability="9.0", device_kind="NVIDIA H200", core_count=132)
    monkeypatch.setattr(jax, "devices", lambda: [hopper])
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    masks = []
    monkeypatch.setattr(api, "attend", lambda *a: (masks.append(a[4]), (2 * a[1], None))[1])
    monkeypatch.setattr(api, "dense_attention", lambda q, k, v, scale: 3 * q)
    attended = functools.partial(block_sparse_attention, mask=None)
    slope = jax.grad(lambda q: attended(q, q, q)[0, 0, 0, 0])(q)[0, 0, 0, 0]
    assert float(slope) == (2 if sparse else 3) and len(masks) == sparse
    assert float(attended(q + 1, q, q)[0, 0, 0, 0]) == 2
    assert masks[-1].density == 1 and masks[-1].block_q == 192  # three warpgroups


@pytest.mark.parametrize(
    ("length", "size", "devices", "served"),
    [(4096, 128, 1, True), (4096, 64, 1, True), (4095, 128, 1, False), (4096, 128, 2, False)],
)
def test_long_dense_attention_takes_full_lists_on_the_only_tpu(
    length, size, devices, served, monkeypatch
):
    """XLA would keep the scores of all pairs there."""
    q = jnp.zeros((1, length, 1, size), jnp.bfloat16)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(api, "_kernel", lambda name: PallasTPU(interpret=True))
    called = []
    monkeypatch.setattr(api, "attend", lambda *a: (called.append(a[4].density), (a[1], None))[1])
    monkeypatch.setattr(api, "dense_attention", lambda q, k, v, scale: q)
    assert block_sparse_attention(q, q, q, None) is q
    assert called == ([1.0] if served else [])
