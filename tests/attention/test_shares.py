"""Densities that differ between rows, layers and heads: one table, whose ones are dense."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jvdm.choices
import jvdm.pipeline
from jvdm.attention import (
    SVG2,
    VSA,
    AdaSpa,
    Draft,
    Oracle,
    Radial,
    Random,
    Rettention,
    Window,
    blocks_of,
    summary,
)
from jvdm.errors import ConfigError
from tests.attention.test_sparse import EVEN, call_on, chosen, ordered
from tests.attention.test_svg2 import attended
from tests.generate.conftest import pipe, weights
from tests.systems.test_systems import PROMPT, latents_of

__all__ = ["pipe", "weights"]

TABLE = (((0.125, 0.5), (0.25, 1.0)), ((0.25, 0.25), (0.125, 0.125)))  # 2 rows, 2 layers, 2 heads
PLAIN: dict[str, Any] = {"dense_rows": 0.0, "dense_layers": 0, "recall_queries": 0, "block": 4}


@pytest.mark.parametrize("kind", [Draft, VSA, Oracle, Random])
def test_every_head_lists_what_the_table_says_of_its_row_and_layer(kind):
    policy, count = kind(1.0, shares=TABLE, **PLAIN), blocks_of(EVEN, 4).count
    for row, layer in ((0, 0), (0, 1), (1, 1)):
        listed = chosen(policy, EVEN, row=row, layer=layer)[0].to_dense().sum(-1)
        expected = np.broadcast_to(np.array(TABLE[row][layer])[:, None] * count, (2, count))
        np.testing.assert_array_equal(listed, np.broadcast_to(expected, listed.shape))
    halves = dataclasses.replace(policy, density=0.5)
    listed = chosen(halves, EVEN, layer=1)[0].to_dense().sum(-1)
    assert (np.asarray(listed) == np.array([0.125, 0.5])[:, None] * count).all()


def test_the_best_of_a_table_are_the_best_of_each_density():
    (q, k, _), _ = ordered(4, EVEN)
    drafted = Draft(block=4).draft(q, k, blocks_of(EVEN, 4))
    drafted = jnp.round(drafted, 2)  # with equal ones
    for density in (0.25, 0.5):
        one = Draft(density, **PLAIN).best(drafted, call_on(EVEN), blocks_of(EVEN, 4))
        table = Draft(1.0, shares=(((density,), (0.75,)),), **PLAIN)
        both = table.best(drafted, call_on(EVEN), blocks_of(EVEN, 4))
        np.testing.assert_array_equal(one, both)


def test_clusters_spend_the_density_of_their_head():
    policy = SVG2(1.0, shares=(((0.1, 0.4),),), **PLAIN)
    apart = [SVG2(density, **PLAIN) for density in (0.1, 0.4)]
    out = attended(policy, EVEN, "first")[0]
    for head, one in enumerate(apart):
        alone = attended(one, EVEN, "first")[0][:, :, head]
        np.testing.assert_allclose(out[:, :, head], alone, rtol=3e-6, atol=3e-6)


def test_ones_are_the_dense_rows_and_layers():
    rows = tuple(((share,),) for share in (1.0, 0.25, 0.25, 1.0, 0.5))
    assert Draft(1.0, shares=rows, **PLAIN).phases(5) == (
        ("dense", 1),
        ("sparse", 2),
        ("dense", 1),
        ("sparse", 1),
    )
    assert Draft(1.0, 0.6, shares=rows).phases(5) == (("dense", 4), ("sparse", 1))
    assert SVG2(1.0, shares=rows, **PLAIN).phases(5) == (
        ("dense", 1),
        ("first", 1),
        ("sparse", 1),
        ("dense", 1),
        ("sparse", 1),
    )
    layers = (((0.25,), (1.0,), (0.5,)),)
    policy = Draft(1.0, shares=layers, **PLAIN)
    dense = dataclasses.replace(policy, shares=())
    assert policy.in_layers(3) == ((policy, 1), (dense, 1), (policy, 1))
    first = dataclasses.replace(policy, dense_layers=1)
    assert [count for _, count in first.in_layers(3)] == [2, 1]
    same = (((1.0,),),)
    assert Draft(1.0, shares=same, **PLAIN).phases(4) == Draft(1.0, **PLAIN).phases(4)
    assert Draft(0.25, shares=(((4.0,),),)).is_dense


def test_a_table_of_one_number_is_the_density():
    scattered = Random(0.25, **PLAIN)
    table = dataclasses.replace(scattered, density=0.5, shares=(((0.5,),),))
    one, two = (chosen(policy, EVEN)[0].to_dense() for policy in (scattered, table))
    np.testing.assert_array_equal(one, two)


@pytest.mark.filterwarnings("ignore:height x width")
def test_rows_of_a_run_have_densities_of_their_own(pipe, tmp_path):
    """Three rows and two layers, from a file and as text."""
    path, size = tmp_path / "shares.json", {"height": 32, "width": 64}
    path.write_text("[[[1.0], [1.0]], [[0.5], [0.25]], [[0.25], [1.0]]]")
    chosen: dict[str, Any] = {"policy": "draft", "policy.density": "1.0"}
    chosen |= {"policy.dense_rows": "0.0", "policy.dense_layers": "0"}
    makers = [
        jvdm.choices.choose(pipe.system, chosen | {"policy.shares": text})
        for text in (str(path), path.read_text())
    ]
    assert makers[0] == makers[1]
    made = dataclasses.replace(pipe, system=makers[0])
    request = jvdm.pipeline.Request(prompt=PROMPT, **size)
    end = made.advance(made.start(made.prepare(request)))
    done = summary(end.state.carry)
    assert done["layers"]["density"] == pytest.approx([1.75 / 3, 2.25 / 3], abs=1e-3)
    ones = jvdm.choices.choose(pipe.system, chosen | {"policy.shares": "[[[1.0]]]"})
    same = dataclasses.replace(pipe, system=ones)
    assert np.array_equal(latents_of(same, **size), latents_of(pipe, **size))
    with pytest.raises(ConfigError, match="policy.shares is .*none.json; .*No such file"):
        jvdm.choices.choose(makers[0], {"policy.shares": str(tmp_path / "none.json")})


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: Draft(shares=((0.5,),)), "shares are .*table .rows..layers..heads"),
        (lambda: Draft(shares=(((0.5,), (0.5, 1.0)),)), "shares are .*all rows alike"),
        (lambda: Draft(shares=(((0.0,),),)), "a share is 0; it is a factor above 0"),
        (lambda: Draft(shares=TABLE).phases(50), "shares of 2 rows; the run has 50"),
        (lambda: Draft(shares=TABLE).in_layers(3), "shares of 2 layers; the network has 3"),
        (lambda: Draft(shares=(((0.5, 1.0, 1.0),),)).init(EVEN), "3 heads; the layer has 2"),
        (lambda: Draft(1.0, shares=(((1e-4,),),)).init(EVEN), "density 0.0001 of 256 tokens"),
        (lambda: Draft(per="head", shares=TABLE), "shares of a density per head"),
        (lambda: Window(shares=TABLE), "shares of Window; its lists are the same"),
        (lambda: Radial(shares=TABLE), "shares of Radial; its lists are the same"),
        (lambda: Rettention(shares=TABLE), "shares of Rettention; its lists are the same"),
        (lambda: AdaSpa(shares=TABLE), "shares of AdaSpa; its search divides the density"),
    ],
)
def test_what_cannot_be_is_refused(act, message):
    with pytest.raises(ConfigError, match=message):
        act()
