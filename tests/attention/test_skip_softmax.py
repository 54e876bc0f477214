"""Skip-softmax as a policy: calibrated limits, what is recorded, and a limit for every frame."""

import dataclasses
import json
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jvdm
from configs.systems import skip_softmax
from jvdm import cli
from jvdm.attention import SkipSoftmax, blocks_of
from jvdm.attention.calibration import fingerprint
from jvdm.attention.skip_softmax import LIMITS, fitted, visiting_order
from jvdm.errors import ConfigError
from jvdm.pipeline import Request
from jvdm.weights.folder import EMBEDDED, digests
from pallas_kernels import block_sparse_attention, dense_attention, skipped_blocks
from tests.attention.test_sparse import EVEN, ODD, chosen, moving, ordered
from tests.generate.conftest import pipe, weights

__all__ = ["pipe", "weights"]

EVERY: Any = {"recall_queries": 1 << 16, "block": 8}
STRICT = SkipSoftmax(0.75, fit=(40.0, 0.0), **EVERY)


@pytest.mark.parametrize("grid", [EVEN, ODD], ids=["even", "odd"])
def test_a_scale_of_zero_is_dense_attention_and_larger_ones_cost_what_they_skip(grid):
    (q, k, v), undo = ordered(STRICT.block, grid)
    exact = dense_attention(*moving(grid))
    before = 1.0
    for scale in (0.0, 4.0, 40.0, grid.tokens):
        policy = dataclasses.replace(STRICT, fit=(float(scale), 0.0))
        mask, tally = chosen(policy, grid)
        out = undo(block_sparse_attention(q, k, v, mask))
        gone = np.asarray(skipped_blocks(q, k, mask))
        lengths = blocks_of(grid, policy.block).lengths / grid.tokens
        told = 1 - np.mean(gone @ lengths @ lengths) / 2
        np.testing.assert_allclose(float(tally.density), told, atol=1e-5)
        assert told < before or scale == 0
        before = told
        if scale == 0:
            everything = blocks_of(grid, policy.block).everything()
            np.testing.assert_array_equal(out, undo(block_sparse_attention(q, k, v, everything)))
            np.testing.assert_allclose(float(tally.recall), 1, atol=1e-6)
        lost = 1 - float(tally.recall)
        assert np.abs(out - exact).mean() <= 2 * lost * np.abs(v).max() + 1e-5


def test_density_1_lists_nothing():
    policy = dataclasses.replace(STRICT, density=1.0)
    mask, tally = chosen(policy, EVEN)
    assert mask is None and policy.order(EVEN) is None
    assert [float(x) for x in tally] == [1, 1, 1, 1]


def test_recall_is_the_mass_of_what_is_kept():
    (q, k, _), _ = ordered(STRICT.block, ODD)
    mask, tally = chosen(STRICT, ODD)
    blocks, gone = blocks_of(ODD, 8), np.asarray(skipped_blocks(q, k, mask)).repeat(8, 2)
    scores = np.einsum("bqnd,bknd->bnqk", q, k) / np.sqrt(ODD.head_dim)
    weights = np.where(blocks.holds, np.exp(scores - scores.max(-1, keepdims=True)), 0)
    weights /= weights.sum(-1, keepdims=True)
    kept = np.where(gone.repeat(8, 3), 0, weights).sum(-1)[..., blocks.holds]
    assert gone.any()
    np.testing.assert_allclose(float(tally.recall), kept.mean(), atol=1e-5)


def test_frames_above_the_level_skip_nothing():
    levels = jnp.asarray([[0.9, 0.2, 0.9, 0.2]])
    policy = dataclasses.replace(STRICT, dense_above=0.5)
    (q, k, _), _ = ordered(policy.block, EVEN)
    mask, _ = chosen(policy, EVEN, t=levels)
    gone: Any = np.asarray(skipped_blocks(q, k, mask)).any((0, 1, 3))
    frames = blocks_of(EVEN, 8).frames
    assert not gone[np.isin(frames, (0, 2))].any()
    assert gone[np.isin(frames, (1, 3))].any()


def test_blocks_are_visited_from_near_to_far():
    blocks = blocks_of(ODD, 8)
    order = visiting_order(blocks, "near")[0, 0]
    places = np.indices(blocks.tiles).reshape(3, -1).T
    for row, visited in enumerate(order):
        apart = np.abs(places[visited] - places[row]).sum(-1)
        assert visited[0] == row and (np.diff(apart) >= 0).all()
        assert sorted(visited) == list(range(blocks.count))
    drafted, _ = chosen(dataclasses.replace(STRICT, visits="draft"), ODD)
    (q, k, _), _ = ordered(8, ODD)
    best = np.asarray(STRICT.draft(q, k, blocks)).argmax(-1)
    np.testing.assert_array_equal(np.asarray(drafted.kv_indices)[..., 0], best)
    plain, _ = chosen(dataclasses.replace(STRICT, visits="first"), ODD)
    assert (np.asarray(plain.kv_indices)[0, 0] == np.arange(blocks.count)).all()


def test_a_curve_is_found_again_and_gives_its_density():
    policy = SkipSoftmax(0.7, fit=(2.0, 5.0))
    limits = np.asarray(LIMITS)
    skipped = np.clip((limits * math.log(2) + math.log(1000) - math.log(2.0)) / 5.0, 0, 1)
    np.testing.assert_allclose(fitted(skipped, 1000), (2.0, 5.0), rtol=1e-3)
    assert abs(np.interp(policy.limit(1000), limits, skipped) - 0.6) < 1e-3
    # Four times the tokens: each weight is a quarter, and so is the limit.
    assert abs(policy.limit(4000) - policy.limit(1000) + 2) < 1e-9
    assert policy.limit(1) == 0
    assert dataclasses.replace(policy, fit=(0.0, 1.0)).limit(9) == -math.inf


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: SkipSoftmax(0.4), "density 0.4 of skip-softmax; products with keys are half"),
        (lambda: SkipSoftmax(fit=(-1.0, 2.0)), r"fit is \(-1.0, 2.0\)"),
        (lambda: SkipSoftmax(fit=(1.0,)), r"fit is \(1.0,\)"),
        (lambda: SkipSoftmax().in_layers(3), "skip-softmax without the two numbers of its scale"),
        (lambda: SkipSoftmax(visits="last"), "visits is 'last'"),
        (lambda: SkipSoftmax(shares=[[[0.5]]]), "shares of SkipSoftmax"),
        (lambda: fitted(np.zeros(len(LIMITS)), 64), "0 limits skip between 10% and 90%"),
    ],
)
def test_what_cannot_be_is_refused(act, message):
    with pytest.raises(ConfigError, match=message):
        act()


def test_limits_are_calibrated_and_used(weights, tmp_path, capsys):
    size = ["--height", "32", "--width", "32", "--num-frames", "9", "--num-inference-steps", "2"]
    search = ["attention", "--weights", str(weights), "--search", "skip_softmax", "--block", "2"]
    search += ["--output", str(tmp_path), "--dense-layers", "0", *size]
    assert cli.main([*search, "--densities", "0.75"]) == 0
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "limits.json").read_text())
    skipped = np.asarray(found["skipped"])
    assert (np.diff(skipped, axis=1) >= 0).all() and skipped[:, 0].max() < 0.1 < skipped.max()
    a, b = found["fit"]
    mine = fingerprint(found["weights"])
    told = {"fit": f"{a},{b}", "block": 2, "weights": mine}
    assert all(f"--sampling.policy.{name} {value}\n" in shown for name, value in told.items())
    asked: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 9, "seed": 0}
    asked |= {"progress": False, "output_type": "latent", "num_inference_steps": 2}
    rules = {"policy": "skip_softmax", **{f"policy.{name}": x for name, x in told.items()}}
    rules |= {"policy.dense_rows": 0.0, "policy.density": 0.6}
    made: Any = jvdm.load(weights, sampling=rules, progress=False)
    plain: Any = jvdm.load(weights, progress=False)
    sparse, dense = (np.asarray(one("a red ball", **asked)) for one in (made, plain))
    assert np.isfinite(sparse).all() and not np.allclose(sparse, dense)
    other = {"policy.block": 2}
    system = jvdm.load(weights, system="skip_softmax", sampling=other, progress=False)
    with pytest.raises(ConfigError, match="skip-softmax of other weights.*--search skip_softmax"):
        system.prepare(Request(prompt="a red ball"))
    assert cli.main([*search, "--densities", "0.4"]) == 2
    assert "density 0.4 of skip-softmax" in capsys.readouterr().err


def test_other_weights_are_those_of_another_network_that_attends():
    mine = {"model.json": "0", "model.safetensors": "a1", "text.safetensors": "b1"}
    others = {"vae.safetensors": "c1", "reader.safetensors": "d1", "vae/model.safetensors": "e1"}
    assert fingerprint(mine | others) == fingerprint(mine | {"model.json": "2"}) == "a1.b1"
    assert fingerprint(mine | {"text.safetensors": "b2"}) != fingerprint(mine)


def test_the_system_has_the_numbers_of_the_weights_that_ship():
    for name, policy in (("tiny_t2v", skip_softmax.TINY_T2V), ("nano", skip_softmax.NANO)):
        told = f"jvdm attention --weights {name} --search skip_softmax"
        assert policy.weights == fingerprint(digests(EMBEDDED / name)), told
    shipped = jvdm.load("nano", system="skip_softmax", progress=False)
    assert shipped.prepare(Request(prompt="a red ball")).system.sampling.policy.fit[0] == 1.636
