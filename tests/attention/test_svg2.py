"""Sparse VideoGen2: clusters, the blocks they are packed into, and what attends to what."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.attention import SVG2, Draft, Window
from jvdm.attention.clusters import means, packed, sorted_rows
from jvdm.attention.svg2 import Listed, density, recall
from jvdm.errors import ConfigError
from pallas_kernels import block_sparse_attention, dense_attention
from tests.attention.test_sparse import EVEN, ODD, call_on, chosen, moving

GRIDS = pytest.mark.parametrize("grid", [EVEN, ODD], ids=["even", "odd"])
PLAIN: dict[str, Any] = {"dense_layers": 0, "block": 4, "recall_queries": 10_000, "first": 8}


def among(q, k, v, mask, return_lse=False):
    return block_sparse_attention(q, k, v, mask, return_lse=return_lse)


@functools.cache
def program(policy, grid):
    def attend(q, k, v, state, t=0.5):
        return policy.attend(q, k, v, state, call_on(grid, t), among)

    return jax.jit(attend)


def attended(policy, grid, *phases, inputs=None, t: Any = 0.5):
    """What the last of some calls returned, and the state after it."""
    state, out = policy.init(grid), None
    for phase in phases:
        run = program(policy.in_phase(phase), grid)
        out, state = run(*(inputs or moving(grid)), state, jnp.asarray(t))
    return np.asarray(out), state


def by_head(x):
    return jnp.moveaxis(x, 2, 1).reshape(-1, x.shape[1], x.shape[3])


def some(x, count):
    """The first tokens of every head, as centroids."""
    return by_head(x[:, :count])


@functools.cache
def divided(policy, grid):
    """Clusters of a first call, and which attend to which."""
    state, search = policy.init(grid), dataclasses.replace(policy, warm=False)

    def find(q, k):
        asks, _ = search.clusters(q, state.queries, 4)
        told, _ = search.clusters(k, state.keys, 4)
        return asks, told, policy.listed_clusters(asks, told, call_on(grid))

    return jax.jit(find)(*moving(grid)[:2])


@GRIDS
def test_attention_is_that_among_the_tokens_of_listed_clusters(grid):
    policy = SVG2(0.3, mass=0.9, **PLAIN)
    out, state = attended(policy, grid, "first")
    asks, told, listed = divided(policy, grid)
    found = zip(listed, asks.labels, told.labels, strict=True)
    pairs = jnp.stack([some[rows][:, columns] for some, rows, columns in found])
    mask = pairs.reshape(grid.batch, grid.heads, *pairs.shape[1:])
    assert 0.1 < pairs.mean() < 0.3 + 1e-6
    np.testing.assert_allclose(out, dense_attention(*moving(grid), mask=mask), rtol=3e-6, atol=3e-6)
    assert abs(float(state.tally.density) - pairs.mean()) < 1e-5
    q, k = (by_head(x) for x in moving(grid)[:2])
    weights = jax.nn.softmax(jnp.einsum("gqd,gkd->gqk", q, k) / np.sqrt(8), -1)
    assert abs(float(state.tally.recall) - (weights * pairs).sum(-1).mean()) < 1e-5


@GRIDS
def test_density_1_is_dense_attention_bit_for_bit_and_a_share_of_1_nearly(grid):
    exact, state = attended(SVG2(1.0, **PLAIN), grid, "sparse")
    np.testing.assert_array_equal(exact, jax.jit(dense_attention)(*moving(grid)))
    assert [float(x) for x in state.tally] == [1, 1, 1, 1]
    nearly, state = attended(SVG2(1 - 1e-7, mass=1.0, **PLAIN), grid, "first")
    np.testing.assert_allclose(nearly, exact, rtol=3e-6, atol=3e-6)
    assert float(state.tally.density) == pytest.approx(1, abs=1e-6)


@GRIDS
@pytest.mark.parametrize("block", [1, 4, 16])
def test_packed_tokens_come_back_and_no_block_holds_two_clusters(grid, block):
    x = moving(grid)[0]
    found, parts = means(x, some(x, 20), 3, block)
    np.testing.assert_array_equal(parts.undo(parts.apply(x)), by_head(x))
    assert (np.asarray(parts.lengths).sum(1) == grid.tokens).all()
    for head in range(len(found.sizes)):
        labels = np.asarray(found.labels[head])[np.asarray(parts.source[head])].reshape(-1, block)
        for number, (owner, length) in enumerate(
            zip(parts.owner[head].tolist(), parts.lengths[head].tolist(), strict=True)
        ):
            assert (labels[number, :length] == owner).all() and (length > 0) == (owner < 20)


@pytest.mark.parametrize("most", [2**30, 2**31], ids=["as one row", "row by row"])
def test_rows_are_sorted_apart(most):
    keys = np.random.default_rng(0).choice(2**30, (4, 40), replace=False).astype(np.int32)
    keys[:, 7], keys[:, 8] = 2**30 - 1, 0
    np.testing.assert_array_equal(sorted_rows(jnp.asarray(keys), most), np.sort(keys, 1))


def test_means_are_those_of_the_members_and_empty_clusters_stay():
    tokens = moving(ODD)[0]
    x = by_head(tokens)
    far = jnp.full((len(x), 1, x.shape[2]), 1e3)
    found, _ = means(tokens, jnp.concatenate([x[:, :6], far], 1), 4, 16)
    assert (found.sizes.sum(1) == ODD.tokens).all() and (found.sizes[:, 6] == 0).all()
    np.testing.assert_array_equal(found.centroids[:, 6:], far)
    for head in range(len(x)):
        for cluster in range(6):
            mine = np.asarray(x[head])[np.asarray(found.labels[head]) == cluster]
            if len(mine):
                np.testing.assert_allclose(
                    found.centroids[head, cluster], mine.mean(0), rtol=1e-4, atol=1e-5
                )
    again, _ = means(tokens, found.centroids, 1, 8)
    away = jnp.square(x[:, :, None] - found.centroids[:, None]).sum(-1)
    np.testing.assert_array_equal(again.labels, away.argmin(-1))


def test_lists_hold_the_share_asked_for_and_no_more_than_the_density():
    lengths = []
    for mass in (0.5, 0.9):
        policy = SVG2(0.99, mass=mass, **PLAIN)
        asks, told, listed = divided(policy, EVEN)
        scores = jnp.einsum("gqd,gkd->gqk", asks.centroids, told.centroids) / np.sqrt(8)
        weights = told.sizes[:, None] * np.exp(scores)
        shares = np.asarray(weights / weights.sum(-1, keepdims=True))
        got = np.where(listed, shares, 0).sum(-1)
        least = np.where(listed, shares, np.inf).min(-1)
        assert (got >= mass - 1e-6).all() and (got - least <= mass + 1e-6).all()
        lengths.append(float(density(listed, asks, told)))
    assert lengths[0] < lengths[1] < 0.99
    for budget, least in ((0.15, 0.14), (0.01, 0.02)):  # the best cluster alone may be more
        asks, told, listed = divided(SVG2(budget, mass=1.0, **PLAIN), EVEN)
        assert listed.any(-1).all() and (listed.sum(-1).max() > 1) == (budget > least)
        assert least < float(density(listed, asks, told)) <= max(budget, 0.06) + 1e-6


def test_clusters_recall_more_than_blocks_of_places_at_equal_density():
    for budget in (0.1, 0.25):
        policy = SVG2(budget, mass=1.0, **PLAIN)
        mine = attended(policy, EVEN, "first")[1].tally
        rest = {"dense_layers": 0, "dense_rows": 0.0, "block": 4, "recall_queries": 10_000}
        theirs = [chosen(kind(budget, **rest), EVEN)[1] for kind in (Draft, Window)]
        assert float(mine.density) <= budget + 1e-6
        assert all(float(mine.recall) > float(other.recall) + 0.02 for other in theirs)


def test_a_warm_start_goes_on_from_the_centroids_of_the_same_head():
    policy = SVG2(0.2, later=1, **PLAIN)
    first = attended(policy, EVEN, "first")[1]
    noise = 0.05 * jax.random.normal(jax.random.key(0), (3, *moving(EVEN)[0].shape))
    drifted = tuple(x + part for x, part in zip(moving(EVEN), noise, strict=True))
    run = program(policy.in_phase("sparse"), EVEN)
    _, warm = run(*drifted, first)
    cold = SVG2(0.2, warm=False, **{**PLAIN, "first": 1})
    _, fresh = program(cold, EVEN)(*drifted, cold.init(EVEN))
    assert float(warm.tally.recall - first.tally.recall) > float(fresh.tally.recall)
    x = by_head(drifted[1])[:, :, None]
    spread = [
        float(jnp.square(x - found.keys.reshape(len(x), 1, -1, 8)).sum(-1).min(-1).mean())
        for found in (warm, fresh)
    ]
    assert spread[0] < 0.95 * spread[1]
    moved, _ = means(drifted[0], first.queries.reshape(-1, *first.queries.shape[2:]), 1, 4)
    np.testing.assert_array_equal(warm.queries.reshape(moved.centroids.shape), moved.centroids)


def test_rows_between_searches_attend_among_the_same_tokens():
    policy = SVG2(0.25, every=3, **PLAIN)
    each, noise = dataclasses.replace(policy, every=1), jax.random.key(0)
    noise = 0.3 * jax.random.normal(noise, (3, *moving(EVEN)[0].shape))
    drifted = tuple(x + part for x, part in zip(moving(EVEN), noise, strict=True))

    @functools.partial(jax.jit, static_argnums=0)
    def run(policy, inputs, state, index):
        call = call_on(EVEN)
        call = call._replace(row=call.row._replace(index=index))
        return policy.attend(*inputs, state, call, among)

    first = run(policy.in_phase("first"), moving(EVEN), policy.init(EVEN), 1)[1]
    out, kept = run(policy, drifted, first, 2)
    jax.tree.map(np.testing.assert_array_equal, kept[1:], first[1:])
    found = zip(first.listed.marked, *(part.labels for part in first.listed[:2]), strict=True)
    pairs = jnp.stack([some[rows][:, columns] for some, rows, columns in found])
    mask = pairs.reshape(EVEN.batch, EVEN.heads, *pairs.shape[1:])
    np.testing.assert_allclose(out, dense_attention(*drifted, mask=mask), rtol=3e-6, atol=3e-6)
    assert float(kept.tally.density) == pytest.approx(2 * float(pairs.mean()), abs=1e-5)
    out, again = run(policy, drifted, kept, 3)
    known, theirs = run(each, drifted, first._replace(listed=None), 3)
    np.testing.assert_array_equal(out, known)
    np.testing.assert_array_equal(again.keys, theirs.keys)
    assert theirs.listed is None and not (again.keys == kept.keys).all()


def test_the_samples_of_a_batch_remember_for_themselves():
    """Branches of guidance are batch rows."""
    policy = SVG2(0.25, **PLAIN)
    out, state = attended(policy, EVEN, "first", "sparse")
    turned = tuple(x[::-1] for x in moving(EVEN))
    other, theirs = attended(policy, EVEN, "first", "sparse", inputs=turned)
    np.testing.assert_array_equal(out, other[::-1])
    np.testing.assert_array_equal(state.keys, theirs.keys[::-1])


def test_queries_of_noisy_frames_attend_to_everything():
    policy = SVG2(0.1, dense_above=0.9, **PLAIN)
    levels = jnp.array([[0.2, 0.95, 0.2, 0.2], [0.2, 0.2, 0.2, 0.2]])
    out, _ = attended(policy, EVEN, "first", t=levels)
    full, noisy = dense_attention(*moving(EVEN)), slice(64, 128)
    np.testing.assert_allclose(out[0, noisy], full[0, noisy], rtol=3e-6, atol=3e-6)
    assert np.abs(out[1, noisy] - full[1, noisy]).max() > 0.1


def test_recall_from_some_queries_is_near_that_from_all():
    asks, told, listed = divided(SVG2(0.2, **PLAIN), EVEN)
    q, k = moving(EVEN)[:2]
    rows, columns = packed(asks, 4), packed(told, 4)
    found = Listed(rows, columns, listed, density(listed, asks, told))
    few, every = (float(recall(q, k, found, n)) for n in (64, 10_000))
    assert abs(few - every) < 0.1 and few != every
    unknown = dataclasses.replace(SVG2(0.2, **PLAIN), recall_queries=0)
    assert np.isnan(attended(unknown, EVEN, "first")[1].tally.recall)


def test_rows_are_divided_as_published():
    assert SVG2().phases(50) == (("dense", 10), ("first", 1), ("every 10", 39))
    assert SVG2().phases(8) == (("dense", 2), ("first", 1), ("sparse", 5))
    assert SVG2(dense_above=0.5).phases(50)[-1] == SVG2(every=7).phases(50)[-1] == ("sparse", 39)
    assert SVG2(dense_rows=1.0).phases(3) == (("dense", 3),)
    assert SVG2(dense_rows=0.0).phases(1) == (("first", 1),)
    assert SVG2().in_phase("sparse") == SVG2()
    assert SVG2().in_phase("every 4") == SVG2(every=4) and SVG2(every=4).period == 4
    assert SVG2(every=4).in_phase("first") == SVG2(every=4, warm=False)
    wan = dataclasses.replace(EVEN, frames=21, height=45, width=80)
    assert SVG2().counts(wan) == (100, 500) and SVG2().sizes(wan) == (128, 64)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: SVG2(mass=0.0), "mass is 0"),
        (lambda: SVG2(keys=-1), "-1 clusters of keys"),
        (lambda: SVG2(later=0), "0 rounds of k-means"),
        (lambda: SVG2(every=-1), "every is -1"),
        (lambda: SVG2(every=2, dense_above=0.5), "a search for 2 rows, whose densities differ"),
        (lambda: SVG2(every=2, shares=(((0.5,),), ((1.0,),))), "whose densities differ"),
        (lambda: SVG2(queries=1000).init(EVEN), "1000 clusters of queries .* 256 tokens"),
        (lambda: SVG2(0.001).init(EVEN), "less than one of 128 blocks"),
    ],
)
def test_what_cannot_be_is_refused(act, message):
    with pytest.raises(ConfigError, match=message):
        act()
