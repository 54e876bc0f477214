"""Sparse policies: what each must list, what stays dense, and what the tally says of it."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.core import Tracer

from jvdm.attention import (
    POLICIES,
    SVG2,
    AdaSpa,
    AttentionCall,
    AttentionTile,
    Draft,
    FrameCausal,
    Oracle,
    PatternSearch,
    Radial,
    Random,
    Rettention,
    Sparse,
    SparseVDiT,
    SpectralBlend,
    TokenGrid,
    Window,
    blocks_of,
    summary,
)
from jvdm.errors import ConfigError
from jvdm.samplers import Call
from pallas_kernels import block_sparse_attention, dense_attention

EVEN = TokenGrid(frames=4, height=8, width=8, batch=2, heads=2, head_dim=8)
ODD = TokenGrid(frames=3, height=5, width=7, batch=2, heads=2, head_dim=8)
SPARSE = [  # those that remember more than a tally are in test_remembering.py
    name
    for name, policy in POLICIES.items()
    if isinstance(policy, Sparse)
    and not isinstance(policy, (SVG2, AdaSpa, Rettention))
    # These allow no low densities: test_attention_tile.py, test_skip_softmax.py.
    and name not in ("attention_tile", "skip_softmax")
]


def call_on(grid, t=0.5):
    levels = jnp.broadcast_to(jnp.asarray(t, jnp.float32), (grid.batch, grid.frames))
    return AttentionCall(jnp.int32(0), Call.at(levels).row, levels, grid)


@functools.cache
def moving(grid):
    """Queries and keys of objects that drift over frames, and values, in raster order."""
    draws, heads = np.random.default_rng(0), (grid.heads, grid.head_dim)
    sides = (grid.frames, grid.height, grid.width)
    frame, *place = np.indices(sides)[..., None]
    start = draws.uniform(size=(2, 6)) * np.array(sides[1:])[:, None]
    speed = draws.normal(size=(2, 6))
    far = sum((x - a - s * frame) ** 2 for x, a, s in zip(place, start, speed, strict=True))
    near = np.exp(-far / 2) / np.exp(-far / 2).sum(-1, keepdims=True)
    maps = 3 * draws.normal(size=(2, grid.batch, 6, *heads))
    noise = draws.normal(size=(3, grid.batch, grid.tokens, *heads))
    q, v = np.einsum("lo,pbond->pblnd", near.reshape(-1, 6), maps)
    parts = (q + 0.3 * noise[0], q + 0.3 * noise[1], v + 0.3 * noise[2])
    return tuple(jnp.asarray(part, jnp.float32) for part in parts)


@functools.cache
def ordered(block, grid):
    """Inputs in the order of blocks, and the way back."""
    blocks = blocks_of(grid, block)

    def turn(x, change):
        frames = x.reshape(x.shape[0], grid.frames, -1, *x.shape[2:])
        return change(frames, 2).reshape(x.shape[0], -1, *x.shape[2:])

    inputs = [turn(x, blocks.order.apply) for x in moving(grid)]
    return inputs, functools.partial(turn, change=blocks.order.undo)


@functools.cache
def compiled(policy, grid):
    """One call, jitted as in a run; what tests vary most is an argument."""

    def select(q, k, v, layer, row, t):
        call = call_on(grid, t=t)
        call = call._replace(layer=layer, row=call.row._replace(index=row))
        return policy.select(q, k, v, policy.init(grid), call)

    return jax.jit(select)


attended = jax.jit(block_sparse_attention)


def chosen(policy: Any, grid, layer=0, row=0, t: Any = 0.5):
    """The mask and the tally of one call."""
    inputs, _ = ordered(policy.block, grid)
    return compiled(policy, grid)(*inputs, jnp.int32(layer), jnp.int32(row), jnp.asarray(t))


def with_density(name, density, **fields):
    fields = {"dense_layers": 0, "dense_rows": 0.0, "recall_queries": 0, **fields}
    fields["density"] = density
    policy: Any = POLICIES[name]
    return dataclasses.replace(policy, **fields)


@pytest.mark.parametrize("name", SPARSE)
def test_density_1_lists_nothing_and_asks_for_no_order(name):
    policy = with_density(name, 1.0)
    mask, tally = policy.select(*moving(EVEN), policy.init(EVEN), call_on(EVEN))
    assert mask is None and policy.order(EVEN) is None
    assert [float(x) for x in tally] == [1, 1, 1, 1]


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("grid", [EVEN, ODD], ids=["even", "odd"])
def test_lists_of_everything_are_dense_attention_in_another_order(name, grid):
    policy = with_density(name, 0.9999, block=8, recall_queries=16)
    (q, k, v), undo = ordered(policy.block, grid)
    mask, tally = chosen(policy, grid)
    out = undo(attended(q, k, v, mask))
    np.testing.assert_allclose(out, dense_attention(*moving(grid)), atol=3e-6)
    assert abs(float(tally.density) - 1) < 1e-6 and abs(float(tally.recall) - 1) < 1e-5


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("grid", [EVEN, ODD], ids=["even", "odd"])
def test_density_and_recall_are_those_of_the_pairs_of_tokens(name, grid):
    policy = with_density(name, 0.3, block=8, recall_queries=10_000)
    inputs, _ = ordered(policy.block, grid)
    mask, tally = chosen(policy, grid)
    mask.check()
    blocks = blocks_of(grid, 8)
    held = blocks.holds
    pairs = np.asarray(mask.token_mask())[:, :, held][..., held]
    q, k, _ = (np.asarray(x)[:, held] for x in inputs)
    weights = jax.nn.softmax(np.einsum("bqnd,bknd->bnqk", q, k) / np.sqrt(8), -1)
    assert abs(float(tally.density) - pairs.mean()) < 1e-5
    assert abs(float(tally.recall) - (weights * pairs).sum(-1).mean()) < 1e-5
    assert 0.15 < float(tally.density) < 0.45


def test_recall_from_some_queries_is_near_that_from_all():
    few, every = (
        chosen(with_density("draft", 0.2, block=4, recall_queries=n), EVEN)[1].recall
        for n in (64, 10_000)
    )
    assert abs(few - every) < 0.1 and few != every
    assert np.isnan(chosen(with_density("draft", 0.2, recall_queries=0), EVEN)[1].recall)


def test_the_oracle_beats_the_draft_and_the_draft_beats_chance():
    for density in (0.1, 0.5):
        recalls = {
            name: float(
                chosen(with_density(name, density, block=4, recall_queries=512), EVEN)[1][2]
            )
            for name in ("oracle", "draft", "random")
        }
        assert recalls["oracle"] >= recalls["draft"] > recalls["random"] + 0.1
        assert recalls["random"] < density + 0.1


@pytest.mark.parametrize("grid", [EVEN, ODD], ids=["even", "odd"])
def test_a_draft_is_exact_where_the_tokens_of_a_block_are_equal(grid):
    blocks = blocks_of(grid, 8)
    q, k = jax.random.normal(jax.random.key(1), (2, 1, blocks.count, 2, 8))
    q, k = (jnp.repeat(x, 8, 1) * blocks.holds[None, :, None, None] for x in (q, k))
    draft = Draft(block=8).draft(q, k, blocks)
    held = blocks.holds
    scores = np.einsum("bqnd,bknd->bnqk", q[:, held], k[:, held]) / np.sqrt(8)
    weights = np.asarray(jax.nn.softmax(scores, -1))
    owner = np.repeat(np.arange(blocks.count), blocks.lengths)
    for i, j in ((0, 0), (1, 3), (blocks.count - 1, 2), (2, blocks.count - 1)):
        mass = weights[:, :, owner == i][..., owner == j].sum(-1).mean(-1)
        np.testing.assert_allclose(draft[:, :, i, j], mass, rtol=1e-4)


def test_padding_has_no_influence():
    policy = with_density("draft", 0.4, block=8, recall_queries=16)
    tokens, undo = ordered(policy.block, ODD)
    empty = ~blocks_of(ODD, 8).holds[None, :, None, None]
    results: list[Any] = []
    for junk in (0.0, 50.0):
        inputs: Any = [jnp.where(empty, junk, x) for x in tokens]
        where = (jnp.int32(0), jnp.int32(0), jnp.asarray(0.5))
        mask, tally = compiled(policy, ODD)(*inputs, *where)
        q, k, v = inputs
        results.append((undo(attended(q, k, v, mask)), tally.recall))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


@pytest.mark.parametrize("name", SPARSE)
def test_a_sample_does_not_depend_on_the_batch(name):
    policy, single = with_density(name, 0.3, block=8), dataclasses.replace(EVEN, batch=1)
    inputs, _ = ordered(8, EVEN)
    both = chosen(policy, EVEN)[0].to_dense()
    where = (jnp.int32(0), jnp.int32(0), jnp.asarray(0.5))
    alone = compiled(policy, single)(*(x[1:] for x in inputs), *where)[0].to_dense()
    np.testing.assert_array_equal(np.broadcast_to(both, (2, *both.shape[1:]))[1], alone[0])


def test_noisy_frames_have_dense_rows():
    policy = with_density("draft", 0.25, dense_above=0.9)
    levels = jnp.array([[0.2, 0.95, 0.9, 1.0], [1.0, 0.0, 0.0, 0.0]])
    mask, tally = chosen(policy, EVEN, t=levels)
    blocks = blocks_of(EVEN)
    rows = mask.to_dense().sum(-1)
    noisy = np.asarray(levels > 0.9)[:, blocks.frames]
    expected = np.where(noisy, blocks.count, policy.listed(blocks))
    np.testing.assert_array_equal(rows, np.broadcast_to(expected[:, None], rows.shape))
    assert abs(float(tally.density) - (0.25 + 0.75 * 3 / 8)) < 1e-6


def test_a_density_per_head_takes_the_best_of_the_head_and_leaves_no_row_empty():
    policy = with_density("draft", 0.1, per="head", block=4)
    inputs, _ = ordered(policy.block, EVEN)
    mask, _ = chosen(policy, EVEN)
    blocks = blocks_of(EVEN, 4)
    drafted = np.asarray(policy.draft(*inputs[:2], blocks))
    listed = np.asarray(mask.to_dense())
    count = policy.listed(blocks) * blocks.count
    for b, n in np.ndindex(2, 2):
        threshold = np.sort(drafted[b, n].ravel())[-count]
        best = drafted[b, n] == drafted[b, n].max(-1, keepdims=True)
        np.testing.assert_array_equal(listed[b, n], (drafted[b, n] >= threshold) | best)
    counts = listed.sum(-1)
    assert counts.min() >= 1 and counts.max() > counts.min()


def test_windows_slide_or_shift_with_the_layer():
    sliding = Window(density=0.3, block=4, recall_queries=0)
    first, second = (chosen(sliding, EVEN, layer=n)[0].to_dense() for n in (0, 1))
    np.testing.assert_array_equal(first, second)
    box = sliding.window(blocks_of(EVEN, 4))
    assert (first.sum(-1) == np.prod(box)).all() and 0.2 < np.prod(box) / 64 <= 0.3
    shifted = Window(density=0.3, block=4, shifted=True, recall_queries=0)
    maps = [np.asarray(chosen(shifted, EVEN, layer=n)[0].to_dense()[0, 0]) for n in (0, 1, 2)]
    np.testing.assert_array_equal(maps[0], maps[2])
    assert (maps[0] != maps[1]).any()
    assert (maps[0].astype(int) @ maps[1]).astype(bool).sum() > 2 * maps[0].sum()


def test_the_frames_of_a_window_can_be_asked_for():
    blocks = blocks_of(EVEN, 4)
    assert Window(0.25, block=4, frames=4).window(blocks)[0] == 4
    assert Window(0.25, block=4, frames=1).window(blocks) == (1, 4, 4)
    with pytest.raises(ConfigError, match="a window of 4 latent frames at density 0.04.* 3 of 64"):
        Window(0.04, block=4, frames=4).window(blocks)


def test_random_blocks_change_with_layer_and_row_and_seed_and_hold_themselves():
    scattered = functools.partial(Random, 0.2, recall_queries=0)
    maps = [
        np.asarray(chosen(scattered(seed=seed), EVEN, layer=layer, row=row)[0].to_dense())
        for seed, layer, row in ((0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0), (0, 0, 0))
    ]
    np.testing.assert_array_equal(maps[0], maps[4])
    assert all((maps[0] != other).any() for other in maps[1:4])
    assert maps[0].diagonal(axis1=2, axis2=3).all()
    assert 0.15 < maps[0].mean() < 0.25


@pytest.mark.parametrize(
    ("grid", "size", "tile"),
    [
        (TokenGrid(9, 16, 16), 16, (4, 4)),  # the shipped model at four times its tokens
        (TokenGrid(21, 30, 52), 128, (16, 8)),  # Wan 480p
        (TokenGrid(33, 22, 38), 64, (8, 8)),  # LTX-Video 704p: 8 x 16 would need a fifth more slots
        (TokenGrid(33, 48, 80), 128, (8, 16)),  # HunyuanVideo 768p: that of DraftAttention
        (TokenGrid(3, 1, 2), 1, (1, 1)),
    ],
)
def test_blocks_fit_the_grid(grid, size, tile):
    blocks = blocks_of(grid)
    assert (blocks.size, blocks.order.tile) == (size, (1, *tile))
    assert blocks.lengths.sum() == blocks.holds.sum() == grid.tokens


def test_phases_and_layers_say_what_is_dense():
    policy: Any = Draft(0.25)
    assert policy.phases(16) == (("dense", 4), ("sparse", 12))
    assert Draft(0.25, dense_rows=1.0).phases(3) == (("dense", 3),)
    assert policy.in_phase("dense").density == 1 and policy.in_phase("sparse") == policy
    (first, count), rest = policy.in_layers(10)
    assert (first.density, count, rest) == (1, 1, (policy, 9))


@pytest.mark.parametrize(
    "policy",
    [
        Window(0.5),
        Radial(0.5),
        Rettention(0.5),
        SparseVDiT(0.5),
        AttentionTile(0.8),
        AttentionTile(references=(1, 1)),
        PatternSearch(names=("references", "diagonal"), counts=(1, 4)),
        SpectralBlend(frames=3),
        FrameCausal(),
    ],
    ids=lambda policy: type(policy).__name__,
)
def test_lists_that_are_known_before_a_run_are_no_operations_of_it(policy):
    """XLA would do such operations as it compiles, which takes minutes at 75,600 tokens."""
    masks = []

    def among(q, k, v, mask, return_lse=False):
        masks.append(mask)
        return (q, q[..., 0].swapaxes(1, 2)) if return_lse else q

    def attend(q, k, v):
        return policy.attend(q, k, v, policy.init(EVEN), call_on(EVEN), among)

    jax.eval_shape(attend, *moving(EVEN))
    lists = [(mask.kv_indices, mask.kv_counts) for mask in masks if mask is not None]
    assert lists and not any(isinstance(x, Tracer) for x in jax.tree.leaves(lists))


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, float("nan")])
def test_a_density_that_is_no_share_is_refused(name, density):
    with pytest.raises(ConfigError, match="density is .*above 0 and at most 1"):
        with_density(name, density)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: Draft(0.001).init(EVEN), "less than one of 128 blocks of 2 tokens"),
        (lambda: Oracle(0.5, block=128).init(EVEN), "blocks of 128 tokens; .* 8 x 8 tokens"),
        (lambda: Oracle(0.5, block=11).init(EVEN), "no tile of 11 tokens fits into 8 x 8"),
        (lambda: Draft(dense_layers=3).in_layers(3), "the network has 3 layers"),
        (lambda: Draft(dense_rows=1.2), "dense_rows is 1.2"),
        (lambda: Draft(dense_above=-1.0), "dense_above is -1"),
        (lambda: Random(block=-1), "block is -1"),
        (lambda: Draft(per="column"), "per is 'column'"),
        (lambda: Window(frames=5).init(EVEN), "a window of 5 latent frames; a call sees 4"),
    ],
)
def test_what_cannot_be_is_refused(act, message):
    with pytest.raises(ConfigError, match=message):
        act()


def test_a_summary_joins_branches_and_needs_a_tally():
    assert summary({"a": jnp.zeros(3)}) == {}
    policy = Oracle(0.5)
    one = jax.tree.map(lambda x: jnp.stack([x, x]), policy.init(EVEN).add(0.5, 0.75, dense=False))
    two = jax.tree.map(lambda x: jnp.stack([x, x]), policy.init(EVEN).add(1.0, 1.0, dense=True))
    told = summary([one, {"other": two}])
    assert told["density"] == 0.75 and told["recall"] == 0.875 and told["dense_share"] == 0.5
    assert told["layers"]["density"] == [0.75, 0.75]
