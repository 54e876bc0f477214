"""Sparse-vDiT: patterns, the choice among them, lists of different heads, and their table."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvdm
from jvdm import cli
from jvdm.attention import PatternSearch, SparseVDiT, blocks_of
from jvdm.attention.patterns import WINDOWS, PatternTable, candidates, near, pattern
from jvdm.errors import ConfigError
from jvdm.pattern_search import costs_of
from pallas_kernels import block_sparse_attention, dense_attention
from tests.attention.test_sparse import EVEN, ODD, call_on, chosen, moving, ordered
from tests.generate.conftest import pipe, weights

__all__ = ["pipe", "weights"]

BLOCK = 4
BLOCKS = blocks_of(EVEN, BLOCK)
PLAIN: dict[str, Any] = {"dense_rows": 0.0, "dense_layers": 0, "recall_queries": 0, "block": BLOCK}


def table_of(errors, counts=(16, 4), grid=EVEN, **fields) -> PatternTable:
    """A table of a network of two layers of two heads."""
    blocks = blocks_of(grid, BLOCK)
    errors = np.broadcast_to(np.asarray(errors, float), (2, 2, len(candidates(counts))))
    draws = np.random.default_rng(0)
    columns = np.stack([draws.permutation(blocks.count)[: counts[0]] for _ in range(4)])
    costs = tuple(count / blocks.count for _, count in candidates(counts))
    told: dict[str, Any] = {
        "weights": "",
        "grid": (grid.frames, grid.height, grid.width),
        "block": BLOCK,
        "counts": counts,
        "costs": costs,
        "errors": errors,
        "columns": columns.reshape(2, 2, -1),
    }
    return PatternTable(**told | fields)


def mixed() -> PatternTable:
    """Heads whose best are a diagonal, to skip, a stripe, and all."""
    errors = np.full((2, 2, 7), 1.0)
    names = list(candidates((16, 4)))
    errors[0, 0, names.index(("crossing", 4))] = 0.0
    errors[0, 1, 0] = 0.0
    errors[1, 0, names.index(("stripe", 16))] = 0.0
    return table_of(errors)


def test_bands_hold_themselves_and_as_many_others_in_every_row():
    for across in (False, True):
        for count in (1, 5, 16, 64):
            marked = near(BLOCKS, count, across)
            assert marked.diagonal().all() and (marked.sum(1) == count).all()
    assert near(BLOCKS, 16)[20].nonzero()[0].tolist() == list(range(12, 28))
    place = np.arange(64) % 16
    crossing = near(BLOCKS, 8, across=True)  # four frames of 16 places
    assert (crossing | (place[:, None] != place[None])).all()  # its own place in every frame
    assert not (near(BLOCKS, 8) | (place[:, None] != place[None])).all()


def test_a_stripe_is_the_same_for_all_queries_and_skipping_is_nothing():
    stripe = pattern(BLOCKS, "stripe", 8)
    assert (stripe == stripe[:1]).all() and stripe[0].sum() == 8
    assert not pattern(BLOCKS, "skip", 0).any()


def test_windows_slide_are_equal_in_every_row_and_keep_to_their_frames():
    frame = np.arange(64) // 16  # four frames of 16 places
    for count in (4, 12, 40):
        for name in WINDOWS:
            marked = pattern(BLOCKS, name, count)
            assert marked.diagonal().all() and len(set(marked.sum(1).tolist())) == 1
            assert 0.5 * count < marked[0].sum() <= count or name == "plane"
            seen = [set(frame[row].tolist()) for row in marked]
            if name == "tube":
                assert all(one == {0, 1, 2, 3} for one in seen)
            if name == "plane":
                assert seen == [{mine} for mine in frame.tolist()]
    with pytest.raises(ConfigError, match="a tube of 3 blocks; there are 4 frames"):
        pattern(BLOCKS, "tube", 3)


def test_a_table_of_windows_gives_each_head_its_own_and_counts_what_is_listed():
    names = list(candidates((16, 4), WINDOWS))
    errors = np.full((2, 2, len(names)), 1.0)
    errors[0, 0, names.index(("tube", 16))] = errors[0, 1, names.index(("plane", 4))] = 0.0
    errors[1, :, 0] = 0.0
    costs = costs_of(BLOCKS, tuple(names), "blocks")
    assert costs == tuple(round(pattern(BLOCKS, *one).mean(), 4) for one in names)
    told: dict[str, Any] = {"names": WINDOWS, "errors": errors, "costs": costs}
    table = dataclasses.replace(table_of(0.0), **told)
    again = PatternTable.read(table.text())
    assert again.names == WINDOWS
    mask, tally = chosen(SparseVDiT(0.4, table=table.text(), **PLAIN), EVEN)
    listed = np.asarray(mask.to_dense())[0]
    for head, one in enumerate((("tube", 16), ("plane", 4))):
        np.testing.assert_array_equal(listed[head], pattern(BLOCKS, *one))
    np.testing.assert_allclose(float(tally.density), listed.mean(), rtol=1e-5)
    errors = np.ones(7)
    errors[3] = 0.0  # a plane of at most 40 blocks, of which a frame has 16
    wide = dataclasses.replace(table_of(errors, (40, 4)), names=WINDOWS)
    assert (wide.chosen(0.25, BLOCKS, 0) == 3).all()
    old = json.loads(table_of(0.0).text())
    del old["names"]  # a table of before there were others
    assert PatternTable.read(json.dumps(old)).names == ("diagonal", "crossing", "stripe")


def test_heads_are_given_what_saves_most_for_the_least_error():
    table = mixed()
    mine = table.chosen(0.5, BLOCKS, 0)
    names = [("all", 64) if i < 0 else candidates(table.counts)[i] for i in mine.ravel()]
    assert names == [("crossing", 4), ("skip", 0), ("stripe", 16), ("all", 64)]
    assert (table.chosen(1.0, BLOCKS, 1)[0] == -1).all()
    for density in (0.05, 0.2, 0.4, 0.8):
        kept = table.chosen(density, BLOCKS, 0)
        shares = np.array([*(count for _, count in candidates(table.counts)), 64]) / 64
        assert shares[kept].mean() <= density
    dearer = dataclasses.replace(table, costs=(0.0, 0.25, 0.25, 0.25, 2.0, 2.0, 2.0))
    assert candidates(table.counts)[dearer.chosen(0.5, BLOCKS, 0)[0, 0]][1] != 4


def test_mixed_lists_are_masked_dense_attention():
    policy = SparseVDiT(0.5, table=mixed().text(), **PLAIN)
    (q, k, v), _ = ordered(BLOCK, EVEN)
    for layer in range(2):
        mask, tally = chosen(policy, EVEN, layer=layer)
        out = block_sparse_attention(q, k, v, mask)
        pairs = np.asarray(mask.token_mask())
        scores = np.einsum("bqnd,bknd->bnqk", q, k) / np.sqrt(8)
        weight = np.where(pairs, np.exp(scores - scores.max(-1, keepdims=True)), 0)
        weight /= np.maximum(weight.sum(-1, keepdims=True), 1e-30)
        np.testing.assert_allclose(out, np.einsum("bnqk,bknd->bqnd", weight, v), 1e-5, 3e-6)
        listed = np.asarray(mask.to_dense()).sum(-1)
        expected = ((4, 0), (16, 64))[layer]
        np.testing.assert_array_equal(
            listed[0], np.broadcast_to(np.array(expected)[:, None], (2, 64))
        )
        assert abs(float(tally.density) - np.mean(expected) / 64) < 1e-6
    skipped = block_sparse_attention(q, k, v, chosen(policy, EVEN, layer=0)[0])[:, :, 1]
    assert not skipped.any()
    stripe = np.asarray(chosen(policy, EVEN, layer=1)[0].to_dense())[0, 0]
    assert sorted(stripe[0].nonzero()[0]) == sorted(mixed().columns[1, 0].tolist())


def test_density_1_is_dense_with_any_table():
    policy: Any = SparseVDiT(1.0, table=mixed().text(), **PLAIN)
    mask, _ = policy.select(*moving(EVEN), policy.init(EVEN), call_on(EVEN))
    assert mask is None and policy.order(EVEN) is None


@pytest.mark.parametrize("grid", [EVEN, ODD], ids=["even", "odd"])
def test_a_search_measures_what_each_pattern_changes(grid):
    counts = (8, 2)
    search = PatternSearch(block=BLOCK, counts=counts)
    inputs, undo = ordered(BLOCK, grid)
    blocks = blocks_of(grid, BLOCK)

    def among(q, k, v, mask, return_lse=False):
        return block_sparse_attention(q, k, v, mask, return_lse=return_lse)

    def attend(policy, state):
        call = call_on(grid)._replace(order=blocks.order)
        q, k, v = inputs
        return jax.jit(lambda: policy.attend(q, k, v, state, call, among))()

    out, state = attend(search, search.init(grid))
    dense = np.asarray(dense_attention(*moving(grid)))
    np.testing.assert_allclose(undo(out), dense, atol=3e-6)
    stacked = jax.tree.map(lambda x: jnp.stack([x]), state)
    best = search.best_columns(stacked)
    _, second = attend(dataclasses.replace(search, columns=best), state)
    again = second.errors - state.errors
    share = grid.tokens / (blocks.count * blocks.size)  # padding adds nothing to a mean
    for i, (name, count) in enumerate(candidates(counts)):
        marked = np.broadcast_to(pattern(blocks, name, count), (1, 2, blocks.count, blocks.count))
        if name == "stripe":
            marked = np.zeros(marked.shape, bool)
            for head in range(2):
                marked[0, head][:, list(best[0][head][:count])] = True
        q, k, v = inputs
        tried = undo(block_sparse_attention(q, k, v, blocks.mask(marked, max(count, 1))))
        expected = share * ((np.asarray(tried) - dense) ** 2).mean((0, 1, 3))
        np.testing.assert_allclose(again[:, i], expected, rtol=1e-3, atol=1e-7)
    assert abs(float(state.errors[:, 0].mean() / state.power) - 1) < 1e-5  # to skip is to lose all
    received = np.asarray(state.mass)
    assert (received.argmax(-1) == [head[0] for head in best[0]]).all()


def test_time_is_a_cost_of_its_own():
    tried = candidates((16, 4))
    by_time = costs_of(BLOCKS, tried, "time")
    assert len(by_time) == 7 and min(by_time) > 0
    assert costs_of(BLOCKS, tried, "blocks") == (0.0, *(0.25,) * 3, *(0.0625,) * 3)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: SparseVDiT(pattern="circle"), "pattern is 'circle'"),
        (lambda: SparseVDiT(table="nowhere.json"), "nowhere.json; it cannot be read.*--search"),
        (lambda: SparseVDiT(table="{}"), "cannot be read .*KeyError.*weights"),
        (lambda: PatternTable.read(table_of(np.nan).text()), "errors are"),
        (
            lambda: SparseVDiT(table=mixed().text()).init(ODD),
            "of 4 x 8 x 8 tokens, 2 heads, blocks of 4; this run has 3 x 5 x 7 tokens",
        ),
        (lambda: SparseVDiT(table=mixed().text()).in_layers(3), "of 2 layers; the network has 3"),
        (
            lambda: (
                SparseVDiT(0.01, table=table_of(np.arange(7)).text(), **PLAIN).check_weights(
                    {"dit.safetensors": "0" * 64}
                )
                or SparseVDiT(table=table_of(1.0, weights="1" * 16).text()).check_weights(
                    {"dit.safetensors": "0" * 64}
                )
            ),
            "of other weights; it is of 1111.*these are 0000",
        ),
    ],
)
def test_what_cannot_be_is_refused(act, message):
    with pytest.raises(ConfigError, match=message):
        act()


def test_a_table_is_searched_used_and_refused_elsewhere(weights, tmp_path, capsys):
    """The command writes a table; runs of its model and size take it, others do not."""
    size = ["--height", "32", "--width", "64", "--num-inference-steps", "2"]
    search = ["attention", "--weights", str(weights), "--search", "sparse_vdit", "--block", "2"]
    search += ["--densities", "0.5", "0.25", "--output", str(tmp_path), *size]
    assert cli.main(search) == 0
    assert "stripe 6" in capsys.readouterr().out
    file = tmp_path / "patterns.json"
    found = json.loads(file.read_text())
    assert found["counts"] == [6, 3] and found["grid"] == [3, 2, 4]
    asked: dict[str, Any] = {"height": 32, "width": 64, "num_inference_steps": 2, "seed": 0}
    asked |= {"progress": False, "output_type": "latent"}
    chosen = {"policy": "sparse_vdit", "policy.table": str(file), "policy.dense_rows": "0.0"}
    made: Any = jvdm.load(weights, sampling=chosen, progress=False)
    sparse, dense = (np.asarray(made("a red ball", density=d, **asked)) for d in (0.5, 1.0))
    plain: Any = jvdm.load(weights, progress=False)
    plain = plain("a red ball", **asked)
    assert np.array_equal(dense, np.asarray(plain)) and not np.allclose(sparse, dense)
    with pytest.raises(ConfigError, match="patterns of 3 x 2 x 4 tokens"):
        made("a red ball", **asked | {"height": 64})
    other: Any = dataclasses.replace(made, identity={"dit.safetensors": "f" * 64})
    with pytest.raises(ConfigError, match="of other weights"):
        other("a red ball", **asked)
    assert cli.main([*search[:-6], "--densities", "1.0", *search[-6:]]) == 2
    assert "patterns of densities" in capsys.readouterr().err
    assert cli.main([*search, "--patterns", "window", "tube"]) == 0
    assert "tube 6" in capsys.readouterr().out
    assert json.loads(file.read_text())["names"] == ["window", "tube"]
    assert cli.main([*search, "--patterns", "windows"]) == 2
    assert "a pattern called 'windows'; there is none; did you mean" in capsys.readouterr().err
