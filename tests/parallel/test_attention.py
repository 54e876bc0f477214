"""Attention over a mesh: any list of blocks as on one device, and what XLA cannot hold."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.attention import AttentionCall, Draft, TokenGrid
from jvdm.parallel import attention, data_mesh, mesh_of, using
from jvdm.parallel.collectives import sent
from jvdm.samplers import Call
from pallas_kernels import BlockMask
from pallas_kernels.attention.api import LONG_ON_TPU

MODULE = sys.modules["jvdm.parallel.attention"]  # the package has a function of that name


@pytest.mark.parametrize(
    ("tpus", "length", "listed"),
    [(True, LONG_ON_TPU, True), (True, LONG_ON_TPU - 1, False), (False, LONG_ON_TPU, False)],
)
def test_long_videos_on_tpus_list_all_blocks_also_where_only_videos_are_split(
    monkeypatch, tpus, length, listed
):
    """On a TPU XLA would keep the scores of all pairs: Wan 14B took 293 GB of a chip's 96."""
    calls = []
    monkeypatch.setattr(MODULE, "_on_tpus", lambda mesh: tpus)
    monkeypatch.setattr(MODULE, "_attend", lambda q, *rest: (calls.append(q.shape), (q, None))[1])
    monkeypatch.setattr(MODULE, "block_sparse_attention", lambda q, *rest, **named: q)
    monkeypatch.setattr(MODULE, "used", lambda: data_mesh(1))
    jax.eval_shape(attention, *(jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32),) * 3)
    assert calls == ([(1, length, 1, 8)] if listed else [])


def lists(rows, heads, queries, keys, **fields):
    """A random mask in blocks of 4 queries and 8 keys; some lists are empty."""
    shape, random = (rows, heads, -(-queries // 4), -(-keys // 8)), np.random.default_rng(0)
    listed = random.random(shape) < 0.4
    listed[..., 1, :] = False
    partial = random.random(shape) < 0.5 if "q_coords" in fields else None
    sizes = {"block_q": 4, "block_kv": 8, "q_len": queries, "kv_len": keys}
    return BlockMask.from_dense(jnp.asarray(listed), partial, **sizes, **fields)


def places(count, last):
    """Times of tokens, as coordinates, some without a place."""
    times = np.linspace(0, 3, count).astype(int) << 20
    times[last:] = -1
    return jnp.asarray(times[None], jnp.int32)


IN_PLACES = {"q_coords": places(40, 37), "kv_coords": places(72, 70), "causal_time": True}
LENGTHS = {"kv_lengths": jnp.array([[8, 3, 8, 8, 5, 8, 1, 8, 8]])}
LENGTHS |= {"q_lengths": jnp.array([[4, 4, 2, 4, 4, 1, 4, 4, 4, 3]])}


@pytest.mark.parametrize(
    ("mesh", "rows", "heads", "fields"),
    [
        ("ring=4", 2, 3, IN_PLACES),
        ("ring=4", 1, 3, LENGTHS | IN_PLACES),
        ("ring=2,sequence=2", 1, 3, {}),
        ("ring=2,sequence=2", 2, 3, LENGTHS | IN_PLACES),
        ("data=2,ring=2", 2, 1, LENGTHS),
        ("tensor=2,ring=2", 1, 3, IN_PLACES),
    ],
)
def test_a_ring_attends_to_what_one_device_does(mesh, rows, heads, fields):
    """Also where nothing divides: 10 blocks of queries and 9 of keys, three heads."""
    keys = jax.random.split(jax.random.key(0), 4)
    q, out = (jax.random.normal(key, (2, 40, 3, 8)) for key in keys[:2])
    k, v = (jax.random.normal(key, (2, 72, 3, 8)) for key in keys[2:])
    mask = lists(rows, heads, 40, 72, **fields)

    def attended(q, k, v, devices=None):
        with using(devices):
            found, lse = attention(q, k, v, mask, return_lse=True)
        return jnp.sum(found * out) + jnp.sum(jnp.where(lse > -jnp.inf, lse, 0)), (found, lse)

    made = jax.jit(jax.value_and_grad(attended, (0, 1, 2), has_aux=True), static_argnums=3)
    (_, one), slopes = made(q, k, v, None)
    (_, several), others = made(q, k, v, mesh_of(mesh))
    for here, there in zip((*one, *slopes), (*several, *others), strict=True):
        np.testing.assert_allclose(there, here, atol=2e-5)  # sums in another order


def test_a_device_of_a_ring_gets_the_lists_of_its_own_queries():
    """None has those of all: their blocks were chosen where their queries are."""
    tokens = jax.ShapeDtypeStruct((1, 4096, 4, 8), jnp.float32)
    scores = jax.ShapeDtypeStruct((1, 4, 64, 64), jnp.float32)

    def attended(q, scores):
        sizes = {"q_len": 4096, "kv_len": 4096, "block_q": 64, "block_kv": 64}
        with using(mesh):
            return attention(q, q, q, BlockMask.from_top(scores, count=8, **sizes))

    mesh = mesh_of("ring=4")
    over = (jax.P(None, "ring"), jax.P(None, None, "ring"))
    places = [jax.NamedSharding(mesh, spec) for spec in over]
    program = jax.jit(attended, in_shardings=places).lower(tokens, scores).compile().as_text()
    assert program and "collective-permute" in program and "all-gather" not in program


@pytest.mark.parametrize("mesh", ["ring=4", "sequence=4"])
def test_choosing_blocks_sends_their_means_and_little_more(mesh):
    """Neither scores nor tokens; the recall is estimated without a message for every query."""
    grid, heads, size = TokenGrid(8, 16, 16, heads=4, head_dim=8), 4, 16
    policy, over = Draft(0.25, block=size, recall_queries=64), mesh_of(mesh)
    spec = jax.P(None, ("ring", "sequence")[mesh[0] == "s"])

    def chosen(q, k):
        given = Call.at(jnp.full((1, 8), 0.5))
        call = AttentionCall(jnp.int32(1), given.row, given.t, grid)
        with using(over):
            mask, tally = policy.select(q, k, k, policy.init(grid), call)
        return mask and (mask.kv_indices, mask.kv_counts), tally

    tokens = jax.ShapeDtypeStruct((1, grid.tokens, heads, 8), jnp.float32)
    lists = jax.NamedSharding(over, jax.P(None, None, *spec[1:]))
    whole = jax.NamedSharding(over, jax.P())
    places = {"in_shardings": jax.NamedSharding(over, spec), "out_shardings": (lists, whole)}
    program = jax.jit(chosen, **places).lower(tokens, tokens).compile().as_text()
    means, lists_of_64 = grid.tokens // size * heads * 8 * 4, 64 * heads * 32 * 4
    assert 0 < sum(sent(program or "").values()) < 2 * (means + lists_of_64)
