"""Rings of packed frames behind that of a cache: what is handed down, what it weighs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.attention import AttentionCall, CachedCausal, TokenGrid
from jvdm.errors import ConfigError
from jvdm.parallel import attention
from jvdm.samplers import Call
from jvdm.values import from_data, to_data
from pallas_kernels import dense_attention

GRID = TokenGrid(frames=2, height=4, width=8, batch=2, heads=2, head_dim=8)
LARGE = dataclasses.replace(GRID, height=8, width=12, batch=1)
SMALL = CachedCausal(frames=2, packed=(2,), patches=(2,))
COUNT = 9


def call_of(grid, first, write=(False, False)):
    row = Call.at(jnp.zeros((1, 2))).row
    row = row._replace(frame=jnp.int32(first), write=jnp.array(write))
    return AttentionCall(jnp.int32(0), row, jnp.zeros((1, 2)), grid)


def drawn(grid, seed=0, patch=1):
    """Keys and values of all frames, `[2, B, COUNT, P, N, D]`, constant in patches."""
    size = (grid.height // patch, grid.width // patch)
    shape = (2, grid.batch, COUNT, *size, grid.heads, grid.head_dim)
    x = jax.random.normal(jax.random.key(seed), shape)
    x = jnp.repeat(jnp.repeat(x, patch, 3), patch, 4)
    return x.reshape(2, grid.batch, COUNT, grid.tokens_per_frame, grid.heads, grid.head_dim)


def of(x, *frames):
    """The tokens of some frames, in one sequence."""
    return jnp.concatenate([x[:, frame] for frame in frames], 1)


def put(policy, grid, state, kept, frames):
    """The state after frames were written, two in a row of the run."""
    for first in frames:
        call = call_of(grid, first, (True, True))
        k, v = (of(x, first, first + 1) for x in kept)
        made = policy.attended(k, k, v, state, call)[-1]
        one = jax.tree.map(lambda leaf: leaf[None], (state, made))
        state = jax.tree.map(lambda leaf: leaf[0], policy.joined(*one, call.row))
    return state


def read(policy, grid, state, kept, first):
    """What the queries of two frames attend to."""
    q = jax.random.normal(jax.random.key(7), of(kept[0], 0, 1).shape)
    window = (of(x, first, first + 1) for x in kept)
    call = call_of(grid, first)
    return q, policy.attend(q, *window, state, call, attention)[0]


def means(x, patch, grid=GRID):
    """Of tokens `[B, P, N, D]`, by loops."""
    x = np.asarray(x).reshape(len(x), grid.height, grid.width, grid.heads, grid.head_dim)
    rows, columns = (range(0, size, patch) for size in (grid.height, grid.width))
    return np.stack(
        [
            np.stack([x[:, i : i + patch, j : j + patch].mean((1, 2)) for j in columns], 1)
            for i in rows
        ],
        1,
    )


def test_what_leaves_a_ring_is_averaged_into_the_next():
    """A sink never leaves; what leaves the last ring is gone."""
    policy = CachedCausal(frames=3, sink=1, packed=(1, 2), patches=(2, 4))
    kept = drawn(GRID)
    state = put(policy, GRID, policy.init(GRID), kept, [0, 2, 4])
    np.testing.assert_array_equal(state.frames, [0, 5, 4])
    np.testing.assert_array_equal(state.older[0].frames, [3])
    np.testing.assert_array_equal(state.older[1].frames, [1, 2])
    for name, x in zip("kv", kept, strict=True):
        near, far = (getattr(ring, name) for ring in state.older)
        np.testing.assert_allclose(near[:, 0], means(x[:, 3], 2), atol=1e-6)
        for slot, frame in enumerate((1, 2)):
            np.testing.assert_allclose(far[:, slot], means(x[:, frame], 4), atol=1e-6)
    later = put(policy, GRID, state, kept, [6])
    np.testing.assert_array_equal(later.older[0].frames, [5])
    np.testing.assert_array_equal(later.older[1].frames, [3, 4])


def test_writing_again_hands_nothing_down_and_what_is_forgotten_is_gone():
    state = put(SMALL, GRID, SMALL.init(GRID), drawn(GRID), [0, 2])
    again = put(SMALL, GRID, state, drawn(GRID, 1), [2])
    np.testing.assert_array_equal(again.frames, [2, 3])
    for one, other in zip(jax.tree.leaves(state.older), jax.tree.leaves(again.older), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(state.truncate(1).older[0].frames, [0, -1])
    back = put(SMALL, GRID, state.truncate(1), drawn(GRID, 1), [1, 3])
    np.testing.assert_array_equal(back.older[0].frames, [2, 1])


@pytest.mark.parametrize("grid", [GRID, LARGE], ids=["frames", "blocks"])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_patches_of_one_token_are_the_ordinary_cache(grid, weight):
    """Beside one whose ring is as long as both rings are together."""
    packed = CachedCausal(frames=2, packed=(3, 1), patches=(1, 1), weight=weight)
    plain, kept = CachedCausal(frames=6, weight=weight), drawn(grid)
    states = [put(policy, grid, policy.init(grid), kept, [0, 2, 4]) for policy in (packed, plain)]
    for first in (5, 6):  # the first window holds a frame that is written already
        found, expected = (
            read(policy, grid, state, kept, first)[1]
            for policy, state in zip((packed, plain), states, strict=True)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    empty = (read(policy, grid, policy.init(grid), kept, 0)[1] for policy in (packed, plain))
    np.testing.assert_allclose(*empty, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grid", [GRID, LARGE], ids=["frames", "blocks"])
def test_where_patches_are_constant_packed_is_unpacked(grid):
    policy = CachedCausal(frames=2, packed=(1, 3), patches=(2, 4))
    plain, kept = CachedCausal(frames=6), drawn(grid, patch=4)
    found, expected = (
        read(policy, grid, put(policy, grid, policy.init(grid), kept, [0, 2, 4]), kept, 6)[1]
        for policy in (policy, plain)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    other = drawn(grid)  # and is not where they are not
    found, expected = (
        read(policy, grid, put(policy, grid, policy.init(grid), other, [0, 2, 4]), other, 6)[1]
        for policy in (policy, plain)
    )
    assert np.abs(found - expected).max() > 1e-2


def test_a_frame_that_is_kept_whole_is_not_read_packed_too():
    """The first of a shot are pinned, and leave the ring as all do."""
    policy = CachedCausal(frames=3, pinned=1, packed=(2,), patches=(2,))
    kept = drawn(GRID)
    state = put(policy, GRID, policy.init(GRID).cut(0, 0), kept, [0, 2])
    np.testing.assert_array_equal(state.frames, [0, 2, 3])
    np.testing.assert_array_equal(state.older[0].frames, [0, 1])
    q, found = read(policy, GRID, state, kept, 4)
    size = GRID.tokens_per_frame
    keys, values = (jnp.concatenate([of(x, 0, 2, 3, 4), *[
        jnp.asarray(means(x[:, 1], 2)).reshape(GRID.batch, -1, GRID.heads, GRID.head_dim)
    ] * 4], 1) for x in kept)  # fmt: skip
    expected = dense_attention(q[:, :size], keys, values)
    np.testing.assert_allclose(found[:, :size], expected, rtol=1e-5, atol=1e-5)


def test_a_packed_frame_takes_as_many_bytes_as_its_patches():
    policy = CachedCausal(frames=3, packed=(2, 16), patches=(2, 4))
    grid = dataclasses.replace(GRID, dtype="bfloat16")
    rings = policy.init(grid).older
    token = 2 * 2 * GRID.batch * GRID.heads * GRID.head_dim  # keys and values of two bytes
    for ring, frames, tokens in zip(rings, (2, 16), (8, 2), strict=True):
        assert ring.k.nbytes + ring.v.nbytes == frames * tokens * token
    assert policy.held == 21 and CachedCausal(frames=3).init(grid).older == ()


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"packed": (2,)}, "a ring has a number of frames and a patch"),
        ({"packed": (0,), "patches": (2,)}, "a ring has a frame or more"),
        ({"packed": (2,), "patches": (8,)}, "patches divide a frame of 4 x 8 tokens"),
        ({"packed": (2,), "patches": (0,)}, "patches divide a frame"),
        ({"packed": (2, 2), "patches": (4, 2)}, "each patch is a multiple"),
        ({"packed": (2,), "patches": (2,), "rotary": "read"}, "have their positions"),
    ],
)
def test_rings_that_cannot_be_are_refused(fields, why):
    with pytest.raises(ConfigError, match=f"(?s)packed latent frames.*{why}.*--sampling.policy"):
        CachedCausal(**fields).init(GRID)


def test_rings_survive_a_record():
    data = json.loads(json.dumps(to_data(SMALL, "policy")))
    assert from_data(data) == SMALL
