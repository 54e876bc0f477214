"""Attention tiles: the published sparsities, lists, gradients, and how references are found."""

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvdm
from jvdm import cli
from jvdm.attention import AttentionTile, TokenGrid, blocks_of
from jvdm.attention.attention_tile import references_of
from jvdm.attention.patterns import most_references, pattern, tiled
from jvdm.errors import ConfigError
from pallas_kernels import block_sparse_attention, dense_attention
from tests.attention.test_sparse import EVEN, ODD, chosen, moving, ordered
from tests.generate.conftest import pipe, weights

__all__ = ["pipe", "weights"]

PLAIN: dict[str, Any] = {"recall_queries": 0, "block": 8}
PUBLISHED = {  # table 1 of the paper: frames, references, sparsity in percent
    (8, 4): 17.60,
    (8, 3): 29.88,
    (8, 2): 45.47,
    (8, 1): 64.38,
    (24, 12): 21.51,
    (24, 8): 40.30,
    (24, 6): 51.88,
    (24, 4): 64.98,
    (24, 3): 72.05,
}


@pytest.mark.parametrize(("frames", "count"), PUBLISHED)
def test_blocks_of_128_that_straddle_frames_have_the_published_sparsity(frames, count):
    """A block of the paper's kernel counts where any of its pairs does."""
    tokens = 3600 * frames
    first = np.arange(0, tokens, 128) // 3600
    last = (np.minimum(np.arange(0, tokens, 128) + 127, tokens - 1)) // 3600
    kept = tiled(frames, count)
    blocks = kept[np.ix_(first, first)] | kept[np.ix_(first, last)]
    blocks |= kept[np.ix_(last, first)] | kept[np.ix_(last, last)]
    assert abs(100 * (1 - blocks.mean()) - PUBLISHED[frames, count]) < 0.015


@pytest.mark.parametrize("count", [1, 2, 5])
def test_pairs_of_frames_grow_with_the_length_not_its_square(count):
    pairs = [int(tiled(frames, count).sum()) for frames in (20, 40, 60)]
    assert pairs[1] - pairs[0] == pairs[2] - pairs[1] == 20 * (2 * count + 1)
    assert [int(tiled(frames, count)[0].sum()) for frames in (20, 40)] == [20, 40]


@pytest.mark.parametrize("grid", [EVEN, ODD], ids=["even", "odd"])
def test_lists_of_every_layer_are_masked_dense_attention_and_so_are_gradients(grid):
    policy = AttentionTile(0.9, references=(1, 2), **PLAIN)
    frame = np.arange(grid.tokens) // grid.tokens_per_frame
    q, k, v = moving(grid)

    def masked(q, k, v, pairs):
        scores = jnp.einsum("bqnd,bknd->bnqk", q, k) / np.sqrt(grid.head_dim)
        weight = jax.nn.softmax(jnp.where(pairs[None, None], scores, -jnp.inf), -1)
        return jnp.einsum("bnqk,bknd->bqnd", weight, v)

    def slopes(of):
        return jax.grad(lambda given: jnp.sum(of(*given) ** 2))((q, k, v))

    for layer, count in enumerate((1, 2)):
        pairs = tiled(grid.frames, count)[np.ix_(frame, frame)]
        mask, tally = chosen(policy, grid, layer=layer)

        def sparse(q, k, v, mask=mask):
            blocks = blocks_of(grid, policy.block)
            q, k, v = map(blocks.ordered, (q, k, v))
            return blocks.raster(block_sparse_attention(q, k, v, mask))

        np.testing.assert_allclose(sparse(q, k, v), masked(q, k, v, pairs), 1e-5, 3e-6)
        assert abs(float(tally.density) - tiled(grid.frames, count).mean()) < 1e-6
        plain = functools.partial(masked, pairs=pairs)
        for mine, theirs in zip(slopes(sparse), slopes(plain), strict=True):
            np.testing.assert_allclose(mine, theirs, 1e-3, 3e-4)


def test_as_many_references_as_frames_are_dense_attention():
    policy = AttentionTile(0.9, references=(EVEN.frames,), **PLAIN)
    (q, k, v), undo = ordered(policy.block, EVEN)
    out = undo(block_sparse_attention(q, k, v, chosen(policy, EVEN)[0]))
    np.testing.assert_allclose(out, dense_attention(*moving(EVEN)), atol=3e-6)


def test_a_density_takes_the_most_references_that_it_allows():
    assert [most_references(8, d) for d in (0.36, 0.58, 0.6, 1.0)] == [1, 2, 2, 8]
    blocks = blocks_of(dataclasses.replace(EVEN, frames=8), 8)
    mask, _ = chosen(AttentionTile(0.6, **PLAIN), blocks.grid)
    assert np.array_equal(np.asarray(mask.to_dense())[0, 0], pattern(blocks, "references", 2))


def test_a_layer_has_the_fewest_references_below_the_bound_of_all():
    errors = np.array([[0.5, 0.4, 0.2, 0.0], [0.1, 0.05, 0.0, 0.0], [0.9, 0.0, 0.0, 0.0]])
    shares = [tiled(4, count).mean() for count in (1, 2, 3, 4)]
    assert references_of(errors, 1.0, 0) == (4, 3, 2)  # nothing changes
    assert references_of(errors, shares[0], 0) == (1, 1, 1)
    assert references_of(errors, 0.8, 1)[0] == 4
    found = references_of(errors, float(np.mean([shares[1], shares[0], shares[1]])), 0)
    assert found == (2, 1, 2)  # all below .4
    for density in (0.7, 0.8, 0.9):
        mine = references_of(errors, density, 0)
        assert np.mean([shares[count - 1] for count in mine]) <= density


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: AttentionTile(references=(0, 2)), r"references are \(0, 2\)"),
        (lambda: AttentionTile(references=(1, 2)).in_layers(3), "of 2 layers; the network has 3"),
        (lambda: AttentionTile(references=(9,)).init(EVEN), "9 reference frames; a call sees 4"),
        (lambda: AttentionTile(0.25).init(EVEN), "density 0.25 over 4 latent frames; one .* 0.62"),
        (lambda: AttentionTile(shares=[[[0.5]]]), "shares of AttentionTile"),
    ],
)
def test_what_cannot_be_is_refused(act, message):
    with pytest.raises(ConfigError, match=message):
        act()


def test_references_are_searched_and_used(weights, tmp_path, capsys):
    size = ["--height", "32", "--width", "32", "--num-frames", "33", "--num-inference-steps", "2"]
    search = ["attention", "--weights", str(weights), "--search", "efficient_vdit", "--block", "2"]
    search += ["--densities", "0.8", "0.5", "--output", str(tmp_path), "--dense-layers", "0", *size]
    assert cli.main(search) == 0
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "references.json").read_text())
    errors = np.asarray(found["errors"])
    assert errors.shape[1] == 9 and (errors[:, 0] > errors[:, 4]).all() and not errors[:, 8].any()
    for density, counts in found["references"].items():
        option = "--sampling.policy.references " + ",".join(map(str, counts))
        assert f"density {density}: {option}\n" in shown
        assert np.mean([tiled(9, count).mean() for count in counts]) <= float(density)
    asked: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 33, "seed": 0}
    asked |= {"progress": False, "output_type": "latent", "num_inference_steps": 2}
    printed = shown.partition("density 0.5: --sampling.policy.references ")[2].split()[0]
    rules = {"policy": "attention_tile", "policy.references": printed}
    made: Any = jvdm.load(weights, sampling=rules | {"policy.block": 2}, progress=False)
    plain: Any = jvdm.load(weights, progress=False)
    sparse, dense = (np.asarray(one("a red ball", **asked)) for one in (made, plain))
    assert np.isfinite(sparse).all() and not np.allclose(sparse, dense)
    assert cli.main([*search, "--densities", "0.2"]) == 2
    assert "one reference frame takes 0.309" in capsys.readouterr().err


def test_blocks_never_straddle_frames():
    grid = TokenGrid(frames=3, height=5, width=7, batch=1, heads=2, head_dim=8)
    blocks = blocks_of(grid, 8)
    marked = pattern(blocks, "references", 1)
    per_frame = blocks.count // grid.frames
    assert marked.reshape(3, per_frame, 3, per_frame).all((1, 3)).tolist() == tiled(3, 1).tolist()
