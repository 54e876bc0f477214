"""What every implementation answers, and what a mask can become."""

import dataclasses

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
from tests.pallas_kernels.cases import exact_attention, gradients, random_inputs, random_mask

# Few shapes, because each compiles anew; the lists, lengths and places are what varies.
SIZES = ((1, 3, 1, 32), (11, 14, 4, 5), (23, 9, 7, 3))
masks = st.sampled_from(SIZES).flatmap(
    lambda sizes: st.builds(
        random_mask,
        st.integers(0, 99),
        *map(st.just, sizes),
        lists=st.sampled_from([(1, 1), (1, 4), (2, 4)]),
        cut=st.booleans(),
        places=st.booleans(),
    )
)


def attend(mask, implementation):
    return jax.jit(
        lambda q, k, v: block_sparse_attention(
            q, k, v, mask, return_lse=True, implementation=implementation
        )
    )


@settings(max_examples=8)
@given(masks, st.sampled_from(["reference", "xla"]), st.sampled_from([1, 2, 4]))
def test_values_and_their_log_sum_exp_are_exact(mask, implementation, kv_heads):
    q, k, v, *_ = random_inputs(1, mask, kv_heads=kv_heads)
    out, lse = attend(mask, implementation)(q, k, v)
    exact, exact_lse = exact_attention(q, k, v, mask.token_mask())
    np.testing.assert_allclose(out, exact, atol=2e-6)
    np.testing.assert_allclose(lse, exact_lse, atol=2e-6)


@settings(max_examples=5)
@given(masks)
def test_gradients_of_both_outputs_are_those_of_the_reference(mask):
    inputs = random_inputs(2, mask)
    expected = gradients(attend(mask, "reference"), inputs)
    for one, two in zip(gradients(attend(mask, "xla"), inputs), expected, strict=True):
        np.testing.assert_allclose(one, two, atol=5e-6)  # NaN is no number that is close


def test_the_gradient_of_the_reference_is_the_slope_of_exact_attention():
    mask = random_mask(3, 6, 7, 2, 3)
    q, k, v, d_out, d_lse = random_inputs(3, mask, size=4)
    allowed = mask.token_mask()

    def total(*arrays):
        q, k, v = arrays
        out, lse = exact_attention(q, k, v, allowed)
        return np.vdot(out, d_out) + np.vdot(np.where(np.isfinite(lse), lse, 0), d_lse)

    ours = gradients(attend(mask, "reference"), (q, k, v, d_out, d_lse))
    for i, gradient in enumerate(ours):
        way = np.random.default_rng(i).standard_normal(gradient.shape)
        ends = []
        for step in (1e-5, -1e-5):
            moved = [np.asarray(x, np.float64) for x in (q, k, v)]
            moved[i] = moved[i] + step * way
            ends.append(total(*moved))
        np.testing.assert_allclose(np.vdot(gradient, way), (ends[0] - ends[1]) / 2e-5, rtol=1e-4)


@settings(max_examples=4)
@given(st.integers(0, 99), st.sampled_from(["reference", "xla"]))
def test_two_halves_of_the_keys_merge_to_the_whole(seed, implementation):
    mask = random_mask(seed, 11, 14, 4, 5)
    q, k, v, *_ = random_inputs(seed, mask)
    first = jnp.arange(3) < 1
    listed, partial = mask.to_dense(), mask._partial()
    sizes = {f.name: getattr(mask, f.name) for f in dataclasses.fields(mask)[3:]}
    parts = []
    for half in (first, ~first):
        keys = half[None, None, None]
        part = BlockMask.from_dense(listed & keys, partial, **sizes)
        parts += attend(part, implementation)(q, k, v)
    for ours, whole in zip(merge(*parts), attend(mask, "reference")(q, k, v), strict=True):
        np.testing.assert_allclose(ours, whole, atol=2e-6)
    slopes = jax.grad(lambda *p: merge(*p)[0].sum() + 0 * p[1][0, 0, 0], (0, 1, 2, 3))(*parts)
    assert all(np.isfinite(x[..., 4:]).all() for x in slopes[1::2])
    assert all(np.isfinite(x).all() for x in slopes[::2])


@pytest.mark.parametrize(("q_len", "kv_len", "heads"), [(11, 14, 1), (3, 20, 4)])
def test_block_mass_is_the_mean_weight_of_blocks(q_len, kv_len, heads):
    mask = BlockMask.full(q_len, kv_len, 4, 5)
    q, k, v, *_ = random_inputs(4, mask, kv_heads=heads)
    _, lse = block_sparse_attention(q, k, v, mask, return_lse=True)
    ours = np.asarray(block_mass(q, k, lse, 4, 5))
    for i, j in np.ndindex(*mask.grid):
        inside = jnp.zeros((q_len, kv_len), bool).at[:, 5 * j : 5 * j + 5].set(True)
        part, level = exact_attention(q, k, v, inside)
        share = np.exp(level - np.asarray(lse))[..., 4 * i : 4 * i + 4]
        np.testing.assert_allclose(ours[:, :, i, j], share.mean(2), atol=2e-6)
    nothing = jnp.full_like(lse, -jnp.inf)
    assert np.abs(block_mass(q, k, nothing, 4, 5)).max() == 0


@settings(max_examples=8)
@given(masks)
def test_a_transposed_mask_allows_the_same_pairs_from_the_other_side(mask):
    turned = mask.transpose()
    np.testing.assert_array_equal(turned.token_mask(), mask.token_mask().swapaxes(2, 3))
    np.testing.assert_array_equal(turned.transpose().token_mask(), mask.token_mask())


@settings(max_examples=8)
@given(masks, st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 3]))
def test_a_coarser_mask_lists_what_the_finer_one_does(mask, rows, columns):
    with pytest.raises(ValueError, match="q_lengths or kv_lengths has no coarser"):
        dataclasses.replace(mask, q_lengths=jnp.ones((1, mask.grid[0]), int)).coarsen()
    mask = dataclasses.replace(mask, q_lengths=None, kv_lengths=None)
    coarse = mask.coarsen(rows, columns)
    fine = np.asarray(mask.to_dense())
    for i, j in np.ndindex(*coarse.grid):
        part = fine[..., rows * i : rows * i + rows, columns * j : columns * j + columns]
        np.testing.assert_array_equal(coarse.to_dense()[..., i, j], part.any((2, 3)))
    assert not (mask.token_mask() & ~coarse.token_mask()).any()
    np.testing.assert_array_equal(mask.coarsen().token_mask(), mask.token_mask())


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
    out, lse = block_sparse_attention(q, k, v, None, return_lse=True)
    np.testing.assert_allclose(out, dense_attention(q, k, v), atol=2e-6)
    assert lse.shape == (2, 4, 4)
