"""AdaSpa and Re-ttention: what a layer found or measured in one row, and does with it later."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.attention import AdaSpa, Draft, Rettention, blocks_of
from jvdm.errors import ConfigError
from jvdm.models.attention import attend
from pallas_kernels import block_sparse_attention, dense_attention
from tests.attention.test_sparse import EVEN, ODD, call_on, chosen, moving, ordered

GRIDS = pytest.mark.parametrize("grid", [EVEN, ODD], ids=["even", "odd"])
PLAIN: dict[str, Any] = {"recall_queries": 10_000, "block": 4, "dense_layers": 0}


def among(q, k, v, mask, return_lse=False):
    return block_sparse_attention(q, k, v, mask, return_lse=return_lse)


@functools.cache
def program(policy, grid):
    def attend(q, k, v, state):
        call = call_on(grid)._replace(order=blocks_of(grid, policy.block).order)
        return policy.attend(q, k, v, state, call, among)

    return jax.jit(attend)


def calls(policy, grid, *phases, inputs=None):
    """Outputs in raster order of calls in these phases, and the last state."""
    given, undo = ordered(policy.block, grid)
    state, out = policy.init(grid), []
    for phase in phases:
        made, state = program(policy.in_phase(phase), grid)(*(inputs or given), state)
        out.append(np.asarray(undo(made)))
    return out, state


@GRIDS
@pytest.mark.parametrize("policy", [AdaSpa(0.25, **PLAIN), Rettention(0.2, **PLAIN)])
def test_the_row_that_looks_at_everything_is_dense(policy, grid):
    phase = "search" if isinstance(policy, AdaSpa) else "refresh"
    (out,), state = calls(policy, grid, phase)
    np.testing.assert_allclose(out, dense_attention(*moving(grid)), atol=3e-6)
    assert [float(x) for x in state.tally] == [1, 1, 1, 1]


def test_sums_that_are_kept_are_not_what_a_kernel_returned():
    """XLA for GPUs would run a kernel again for a result that a loop over layers keeps."""

    class Keeps(AdaSpa):
        def attend(self, q, k, v, state, call, among):
            return among(q, k, v, None, return_lse=True)

    def kept(q, k, v):
        return attend(Keeps(0.25, **PLAIN), q, k, v, None, call_on(EVEN))

    q, k, v = moving(EVEN)
    *_, last = jax.make_jaxpr(kept)(q, k, v).jaxpr.eqns
    assert last.primitive.name == "optimization_barrier"
    known = block_sparse_attention(q, k, v, None, return_lse=True)
    jax.tree.map(np.testing.assert_array_equal, kept(q, k, v), known)


@GRIDS
def test_a_search_with_the_old_sums_finds_the_same_blocks(grid):
    policy = AdaSpa(0.25, **PLAIN)
    (_, reused), state = calls(policy, grid, "search", "reuse")
    (_, _, again), later = calls(policy, grid, "search", "reuse", "again")
    np.testing.assert_array_equal(reused, again)
    np.testing.assert_array_equal(state.listed, later.listed)
    shifted = state._replace(lse=state.lse + 3.0)  # an offset common to all changes nothing
    inputs, _ = ordered(policy.block, grid)
    _, found = program(policy.in_phase("again"), grid)(*inputs, shifted)
    np.testing.assert_array_equal(found.listed, state.listed)


def test_found_blocks_hold_more_than_those_of_a_draft_and_heads_share_them():
    drafted = chosen(Draft(0.1, dense_rows=0.0, **PLAIN), EVEN)[1]
    recalls = {}
    for by_head in (False, True):
        policy = AdaSpa(0.1, by_head=by_head, **PLAIN)
        _, state = calls(policy, EVEN, "search", "reuse")
        recalls[by_head] = float(state.tally.recall - 1)
        assert abs(float(state.tally.density - 1) - float(drafted.density)) < 1e-6
    assert recalls[False] >= float(drafted.recall) - 1e-6


def test_heads_that_recall_most_give_blocks_to_those_that_recall_least():
    policy, blocks = AdaSpa(0.25, **PLAIN), blocks_of(EVEN, 4)
    (q, k, v), _ = ordered(4, EVEN)
    k = k * jnp.array([8.0, 0.05])[None, None, :, None]  # one sharp head, one flat head
    _, state = calls(policy, EVEN, "search", inputs=(q, k, v))
    few, usual, many = policy.budgets(blocks)
    assert (few, usual, many) == (8, 16, 24)
    rows = np.asarray(state.listed.sum(-1))
    assert (rows[:, 0] == few).all() and (rows[:, 1] == many).all()


@GRIDS
def test_with_unchanged_inputs_remembered_statistics_are_dense_attention(grid):
    policy = Rettention(0.2, ramp=0.0, **PLAIN)
    (full, sparse, later), _ = calls(policy, grid, "refresh", "sparse", "sparse")
    np.testing.assert_allclose(sparse, full, atol=3e-6)
    np.testing.assert_allclose(later, full, atol=3e-6)
    renormalised = dataclasses.replace(policy, statistics=False)
    (full, sparse), _ = calls(renormalised, grid, "refresh", "sparse")
    assert np.abs(sparse - full).max() > 0.1


def test_at_95_percent_dropped_statistics_are_nearer_to_dense_when_inputs_drift():
    errors, (q, k, v) = {}, ordered(2, EVEN)[0]
    noise = 0.1 * jax.random.normal(jax.random.key(3), (3, *q.shape))
    drifted = tuple(x + part for x, part in zip((q, k, v), noise, strict=True))
    for statistics in (True, False):
        policy = Rettention(0.05, statistics=statistics, ramp=0.0, block=2)
        state = policy.init(EVEN)
        _, state = program(policy.in_phase("refresh"), EVEN)(q, k, v, state)
        out, state = program(policy.in_phase("sparse"), EVEN)(*drifted, state)
        assert abs(float(state.tally.density - 1)) <= 0.05
        errors[statistics] = float(jnp.abs(out - dense_attention(*drifted)).mean())
    assert errors[True] < 0.5 * errors[False]


def test_the_share_grows_and_is_never_more_than_all():
    policy = Rettention(0.2, ramp=0.4, **PLAIN)
    _, state = calls(policy, EVEN, "refresh")
    _, later = calls(policy, EVEN, "refresh", "sparse")
    np.testing.assert_allclose(later.share, np.minimum(state.share + 0.4, 1.0), rtol=1e-6)
    assert float(later.share.max()) == 1.0 and float(state.share.max()) <= 1.0


def test_the_samples_of_a_batch_remember_for_themselves():
    """Branches of guidance are batch rows."""
    for policy in (AdaSpa(0.25, **PLAIN), Rettention(0.2, **PLAIN)):
        first = "search" if isinstance(policy, AdaSpa) else "refresh"
        inputs, _ = ordered(4, EVEN)
        turned = tuple(x[::-1] for x in inputs)
        _, state = calls(policy, EVEN, first)
        _, other = calls(policy, EVEN, first, inputs=turned)
        for mine, theirs in zip(state[1:], other[1:], strict=True):
            np.testing.assert_array_equal(mine, theirs[::-1])


def test_rows_are_divided_as_published():
    names = AdaSpa(dense_rows=0.2).phases(50)
    assert names == (("dense", 9), ("search", 1), ("reuse", 20), ("again", 1), ("reuse", 19))
    often = AdaSpa(again=(0.9, 0.0, 0.5, 0.5, 1.0)).phases(10)
    assert often == tuple(
        (name, count)
        for name, count in zip(
            ("dense", "search", "again", "reuse", "again", "reuse", "again"),
            (1, 1, 1, 2, 1, 3, 1),
            strict=True,
        )
    )
    assert AdaSpa(again=()).phases(4) == (("search", 1), ("reuse", 3))
    rows = [name for name, count in Rettention().phases(50) for _ in range(count)]
    assert rows.count("dense") == 15 and rows.count("refresh") == 7  # CogVideoX-2B's
    assert [n for n, name in enumerate(rows) if name == "refresh"] == list(range(15, 50, 5))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: AdaSpa(again=(0.5, 1.5)), r"again is \(0.5, 1.5\)"),
        (lambda: AdaSpa(mode="look"), "mode is 'look'"),
        (lambda: Rettention(period=0), "period is 0"),
        (lambda: Rettention(ramp=-1.0), "ramp is -1"),
        (lambda: Rettention(0.05, block=4).init(EVEN), "same patch of 4 latent frames"),
    ],
)
def test_what_cannot_be_is_refused(act, message):
    with pytest.raises(ConfigError, match=message):
        act()
