"""The cache of keys and values: which slot, which frames are seen, which places they have."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.attention import AttentionCall, CachedCausal, KVCache, TokenGrid
from jvdm.errors import ConfigError
from jvdm.parallel import attention
from jvdm.samplers import Call
from pallas_kernels import dense_attention

GRID = TokenGrid(frames=2, height=1, width=1, head_dim=1)


def turn(k, frames=None):
    """Marks keys with a hundredth of their place in time, those of the window with a half."""
    return k + 0.5 if frames is None else k + frames[None, :, None, None] / 100


def seen(policy, state, first, write=(False, False)):
    """Keys, who sees which, and the next state, of a window of two frames."""
    row = Call.at(jnp.zeros((1, 2))).row._replace(frame=jnp.int32(first), write=jnp.array(write))
    call = AttentionCall(jnp.int32(0), row, jnp.zeros((1, 2)), GRID, turn=turn)
    k = (first + jnp.arange(2.0)).reshape(1, 2, 1, 1)
    keys, values, mask, made = policy.attended(k, k, -k, state, call)
    state = after(policy, state, made, row)
    np.testing.assert_array_equal(values[:, -2:], -k)
    return np.asarray(keys).ravel(), np.asarray(mask.token_mask())[0, 0], state, row


def after(policy, state, made, row):
    """The next state of the only layer."""
    states, made = jax.tree.map(lambda leaf: leaf[None], (state, made))
    return jax.tree.map(lambda leaf: leaf[0], policy.joined(states, made, row))


@pytest.mark.parametrize(
    ("rotary", "places"), [("read", [0.0, 3.02, 2.01]), ("write", [0.5, 3.5, 2.5])]
)
def test_a_sink_keeps_its_place_and_the_ring_moves_up(rotary, places):
    policy = CachedCausal(frames=3, sink=1, rotary=rotary)
    state = policy.init(GRID)
    for frame in range(4):
        _, _, state, _ = seen(policy, state, frame, (True, False))
    np.testing.assert_array_equal(state.frames, [0, 3, 2])
    keys, mask, _, row = seen(policy, state, 4)
    np.testing.assert_allclose(keys, [*places, 4.5, 5.5], rtol=1e-6)
    np.testing.assert_array_equal(mask, [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    expected = [3, 4] if rotary == "read" else [4, 5]
    np.testing.assert_array_equal(policy.positions(jnp.zeros(2), row, state), expected)


def test_before_the_cache_is_full_places_are_absolute_and_empty_slots_unseen():
    policy = CachedCausal(frames=3, rotary="read")
    _, _, state, _ = seen(policy, policy.init(GRID), 0, (True, True))
    keys, mask, state, row = seen(policy, state, 2, (True, False))
    np.testing.assert_allclose(keys[:2], [0.0, 1.01], rtol=1e-6)
    np.testing.assert_array_equal(mask[0], [1, 1, 0, 1, 0])
    np.testing.assert_array_equal(policy.positions(jnp.zeros(2), row, state), [2, 3])
    # What this window holds is read from the window, though it has been written already.
    np.testing.assert_array_equal(seen(policy, state, 2)[1][1], [1, 1, 0, 1, 1])
    np.testing.assert_array_equal(state.truncate(1).frames, [0, -1, -1])


@pytest.mark.parametrize(
    ("rotary", "where"),
    [("read", [0.0, 2.01, 3.02, 7.04, 6.03]), ("write", [0.5, 2.5, 3.5, 7.5, 6.5])],
)
def test_pinned_frames_stay_behind_the_sink_until_others_are_pinned(rotary, where):
    policy = CachedCausal(frames=5, sink=1, pinned=2, rotary=rotary)
    state = policy.init(GRID)
    for frame in range(4):
        _, _, state, _ = seen(policy, state, frame, (True, False))
    state = policy.pin(state, jnp.array([2, 3]))
    np.testing.assert_array_equal(state.frames, [0, 2, 3, 3, 2])
    # Both are in the ring still, and are seen once.
    np.testing.assert_array_equal(seen(policy, state, 4)[1][0], [1, 0, 0, 1, 1, 1, 0])
    for frame in range(4, 8):
        _, _, state, _ = seen(policy, state, frame, (True, False))
    np.testing.assert_array_equal(state.frames, [0, 2, 3, 7, 6])
    keys, mask, _, _ = seen(policy, state, 8)
    np.testing.assert_array_equal(mask[0], [1, 1, 1, 1, 1, 1, 0])
    np.testing.assert_allclose(keys[:5], where, rtol=1e-6)
    # Values are those of the frames, and others take their slots; one that is gone leaves none.
    np.testing.assert_array_equal(state.v.ravel(), [0, -2, -3, -7, -6])
    np.testing.assert_array_equal(policy.pin(state, jnp.array([7])).frames, [0, 7, -1, 7, 6])
    np.testing.assert_array_equal(policy.pin(state, jnp.array([1, 6])).frames, [0, -1, 6, 7, 6])


@pytest.mark.parametrize("rotary", ["read", "write"])
def test_what_was_before_a_cut_is_that_much_earlier_until_the_ring_has_turned(rotary):
    policy = CachedCausal(frames=3, sink=1, rotary=rotary)
    state = policy.init(GRID)
    for frame in range(4):
        _, _, state, _ = seen(policy, state, frame, (True, False))
    np.testing.assert_array_equal(state.frames, [0, 3, 2])
    cut = state.cut(4, 8)
    row = Call.at(jnp.zeros((1, 2))).row._replace(frame=jnp.int32(4))
    now = 12 if rotary == "write" else 3
    np.testing.assert_array_equal(policy.positions(jnp.zeros(2), row, cut), [now, now + 1])
    if rotary == "read":  # sink, ring and window of 3 and 4
        np.testing.assert_array_equal(policy._places(cut, row), [-8, -6, -7])
    for frame in range(4, 6):
        _, _, cut, _ = seen(policy, cut, frame, (True, False))
    np.testing.assert_array_equal(cut.places, [0, 13, 12])
    if rotary == "read":  # nothing of the ring is of the shot before
        np.testing.assert_array_equal(policy._places(cut, row._replace(frame=6)), [0, 2, 1])


def test_the_first_frames_after_a_cut_are_pinned_until_the_next():
    policy = CachedCausal(frames=5, sink=1, pinned=2)
    state = policy.init(GRID)
    for frame in range(4):
        _, _, state, _ = seen(policy, state, frame, (True, False))
    np.testing.assert_array_equal(state.frames[1:3], [-1, -1])
    state = state.cut(4, 8)
    for frame in range(4, 8):
        _, _, state, _ = seen(policy, state, frame, (True, False))
    np.testing.assert_array_equal(state.frames, [0, 4, 5, 7, 6])
    _, _, state, _ = seen(policy, state, 8, (True, False))
    np.testing.assert_array_equal(state.frames, [0, 4, 5, 7, 8])
    np.testing.assert_array_equal(state.places, [0, 12, 13, 15, 16])
    np.testing.assert_array_equal(state.v.ravel(), [0, -4, -5, -7, -8])
    _, _, again, _ = seen(policy, state.cut(9, 8), 9, (True, False))
    np.testing.assert_array_equal(again.frames[:3], [0, 9, 5])


def attended(policy, state, frame, q, k, v):
    """What a window that begins at a frame reads, without rotary positions."""
    row = Call.at(jnp.zeros((1, 2))).row._replace(frame=jnp.int32(frame))
    grid = dataclasses.replace(GRID, head_dim=8)
    call = AttentionCall(jnp.int32(0), row, jnp.zeros((1, 2)), grid)
    return policy.attend(q, k, v, state, call, attention)[0]


def test_a_ring_of_a_weight_is_read_as_if_its_keys_were_there_so_often():
    """Against the softmax of all scores; one key in two is a weight of a half."""
    policy = CachedCausal(frames=3, sink=1)
    grid = dataclasses.replace(GRID, head_dim=8)
    q, k, v = jax.random.normal(jax.random.key(1), (3, 1, 2, 1, 8))
    kept = jax.random.normal(jax.random.key(2), (2, 1, 3, 1, 8))
    empty = policy.init(grid)
    state = empty.write(kept[0], kept[1], jnp.arange(3), jnp.arange(3))

    def expected(weights):
        """Of the second frame, which sees all five."""
        keys, values = (
            jnp.concatenate(pair, 1)[0, :, 0] for pair in zip(kept, (k, v), strict=True)
        )
        scores = keys @ q[0, 1, 0] / jnp.sqrt(8.0) + jnp.log(jnp.array(weights))
        return jax.nn.softmax(scores) @ values

    for weight in (0.3, 2.0):
        found = attended(dataclasses.replace(policy, weight=weight), state, 3, q, k, v)
        weights = [1.0, weight, weight, 1.0, 1.0]
        np.testing.assert_allclose(found[0, 1, 0], expected(weights), rtol=1e-5, atol=1e-6)
    hidden = dataclasses.replace(policy, weight=0.0)
    forgotten = attended(policy, state.forget(1, 3), 3, q, k, v)
    found = attended(hidden, state, 3, q, k, v)
    np.testing.assert_allclose(found, forgotten, rtol=1e-6, atol=1e-6)
    louder = 2 * kept + 1
    other = state.write(louder[0], louder[1], jnp.arange(3), jnp.array([3, 1, 2]))
    np.testing.assert_array_equal(attended(hidden, other, 3, q, k, v), found)
    half = dataclasses.replace(policy, weight=0.5)
    np.testing.assert_array_equal(  # with nothing in the cache
        attended(half, empty, 0, q, k, v), attended(policy, empty, 0, q, k, v)
    )


def test_what_is_forgotten_is_seen_no_more():
    policy = CachedCausal(frames=5, sink=1)
    state = policy.init(GRID)
    for frame in range(5):
        _, _, state, _ = seen(policy, state, frame, (True, False))
    np.testing.assert_array_equal(state.forget(1, 4).frames, [0, -1, -1, -1, 4])
    np.testing.assert_array_equal(seen(policy, state.forget(1, 4), 5)[1][0, :5], [1, 0, 0, 0, 1])


def test_frames_of_a_block_see_each_other():
    policy = CachedCausal(frames=2, block=2)
    np.testing.assert_array_equal(seen(policy, policy.init(GRID), 0)[1][:, 2:], [[1, 1], [1, 1]])
    np.testing.assert_array_equal(seen(policy, policy.init(GRID), 1)[1][:, 2:], [[1, 0], [1, 1]])


def test_writing_twice_is_writing_once_and_nothing_else_is_touched():
    cache = KVCache.empty(GRID, 3)
    one = cache.write(jnp.ones((1, 2, 1, 1)), jnp.ones((1, 2, 1, 1)), jnp.arange(2), jnp.arange(2))
    two = one.write(jnp.ones((1, 2, 1, 1)), jnp.ones((1, 2, 1, 1)), jnp.arange(2), jnp.arange(2))
    for name in ("k", "v", "frames"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    np.testing.assert_array_equal(one.k.ravel(), [1, 1, 0])
    other = jnp.full((1, 2, 1, 1), 2.0)
    np.testing.assert_array_equal(one.write(other, other, jnp.arange(2), jnp.full(2, 3)).k, one.k)


def test_caches_of_all_layers_are_written_as_each_by_itself():
    grid = dataclasses.replace(GRID, width=2, batch=2, heads=3)
    caches = [KVCache.empty(grid, 3), KVCache.empty(grid, 3).cut(0, 5)]
    made, slots = (
        jax.random.normal(jax.random.key(0), (2, 2, 2, 4, 3, grid.head_dim)),
        jnp.array([2, 0]),
    )
    each = [
        cache.write(k, v, jnp.arange(2), slots)
        for cache, (k, v) in zip(caches, made.swapaxes(0, 1), strict=True)
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *caches)
    both = stacked.write(*made, jnp.arange(2), slots)
    chex.assert_trees_all_equal(both, jax.tree.map(lambda *leaves: jnp.stack(leaves), *each))
    np.testing.assert_array_equal(both.k[1, :, 2], made[0, 1, :, :2])


@pytest.mark.parametrize(
    "fields",
    [{"frames": 2, "sink": 2}, {"sink": -1}, {"block": 0}, {"frames": 3, "sink": 1, "pinned": 2}],
)
def test_caches_that_hold_nothing_are_refused(fields):
    with pytest.raises(ConfigError, match="a cache of .* latent frames"):
        CachedCausal(**fields).init(GRID)


@pytest.mark.parametrize("weight", [-0.5, float("inf"), float("nan")])
def test_weights_that_are_none_are_refused(weight):
    with pytest.raises(ConfigError, match=f"frames of a cache weigh {weight}"):
        CachedCausal(weight=weight).init(GRID)


@pytest.mark.parametrize(("block", "held"), [(1, 1), (2, 1), (1, 3)])
def test_frames_of_many_tokens_are_seen_as_a_whole_in_blocks_that_kernels_like(block, held):
    grid = TokenGrid(frames=2, height=7, width=10, heads=2, head_dim=8)
    policy, masks = CachedCausal(frames=3, block=block), []
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 2 * 70, 2, 8))

    def among(q, k, v, mask, **given):
        masks.append(mask.mask)
        return attention(q, k, v, mask, **given)

    def call_at(first):
        row = Call.at(jnp.zeros((1, 2))).row
        row = row._replace(frame=jnp.int32(first), write=jnp.array([True, False]))
        return AttentionCall(jnp.int32(0), row, jnp.zeros((1, 2)), grid)

    state = policy.init(grid)
    for frame in range(held):
        _, made = policy.attend(q, k, v, state, call_at(frame), among)
        state = after(policy, state, made, call_at(frame).row)
    out, _ = policy.attend(q, k, v, state, call_at(max(held, 2)), among)
    assert masks[-1].block_q == masks[-1].block_kv == 128
    # Of the cached frames, all alike, and of its block or before a frame of the window sees all.
    for frame, keys in ((0, held + block), (1, held + 2)):
        mine = slice(70 * frame, 70 * (frame + 1))
        cached = ([*[x[:, :70]] * held, x] for x in (k, v))
        k_seen, v_seen = (jnp.concatenate(parts, 1)[:, : 70 * keys] for parts in cached)
        expected = dense_attention(q[:, mine], k_seen, v_seen)
        np.testing.assert_allclose(out[:, mine], expected, rtol=1e-5, atol=1e-5)
