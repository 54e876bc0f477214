"""DiTCtrl: tiles in pairs, keys of the tile before, prompts blended where tiles cross sections."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvdm
from jvdm.attention import AttentionCall, TileBefore, TokenGrid
from jvdm.models import TextStates
from jvdm.models.conditions import in_sections
from jvdm.pipeline import Request
from jvdm.recipes import load_system
from jvdm.samplers import Call, Denoised, Tiles, fused, fused_carry
from jvdm.samplers.denoiser import Row
from tests.generate import nano

PROMPT, OTHER = "a large red ball rests", "a small blue box rests"


def test_a_tile_between_two_is_evaluated_beside_both_and_its_weights_are_shared():
    plain, pairs = Tiles(4, 2), Tiles(4, 2, pairs=True)
    np.testing.assert_array_equal(pairs.places(10, 2, 2)[:, 0], [0, 2, 2, 4, 4, 6])
    first, last = plain.shares(10, 2, 2)[[0, -1]]
    made = pairs.shares(10, 2, 2)
    np.testing.assert_array_equal(made[[0, -1]], [first, last])
    np.testing.assert_array_equal(made[1] + made[2], plain.shares(10, 2, 2)[1])
    sums = np.zeros((10, 2, 2))
    for (start, *_), share in zip(pairs.places(10, 2, 2), made, strict=True):
        sums[start : start + 4] += share
    np.testing.assert_allclose(sums, 1, rtol=1e-6)
    with pytest.raises(jvdm.ConfigError, match="in pairs; .*say frames alone"):
        Tiles(4, 2, height=8, pairs=True)


def test_tiles_in_pairs_hand_on_what_layers_remember():
    """A carry that counts has seen all evaluations of the row, each after the one before."""
    tiles, x = Tiles(4, 2, pairs=True), jnp.zeros((1, 8, 2, 2, 1))

    def denoiser_of(place):
        def denoise(x, call, carry):
            return Denoised(x + carry, x), carry + 1

        return denoise

    carry = fused_carry(tiles, jnp.float32(0), 8, 2, 2)
    assert carry.shape == ()
    row = Row(jnp.int32(0), jnp.int32(0), jnp.zeros(8, bool), jnp.int32(0))
    t = jnp.full((1, 8), 0.5)
    said, carry = fused(tiles, denoiser_of)(x, Call(t, t, row), carry)
    assert carry == 4  # tiles at 0, 2, 2 and 4
    np.testing.assert_allclose(said.x0[0, [0, -1], 0, 0, 0], [0, 3])


def test_queries_meet_the_keys_of_the_tile_before_and_no_others():
    policy, grid = TileBefore(layers=1.0), TokenGrid(2, 2, 2, head_dim=4)
    keys = jax.random.normal(jax.random.key(0), (4, 1, grid.tokens, 1, 4))
    t, state, met = jnp.zeros((1, 2)), policy.init(grid), []
    for k, frame in zip(keys, (0, 2, 2, 0), strict=True):  # first, next, again; another row
        row = Call.at(t).row._replace(frame=jnp.int32(frame))
        call = AttentionCall(jnp.int32(0), row, t, grid)
        found, values, mask, state = policy.attended(k, k, 2 * k, state, call)
        np.testing.assert_array_equal(values, 2 * found)
        assert mask is None and state.frame == frame
        met.append(found)
    for found, expected in zip(met, (keys[0], keys[0], keys[2], keys[3]), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_only_some_rows_and_layers_share():
    policy = TileBefore()
    assert policy.phases(50) == (("own", 2), ("shared", 23), ("own", 25))
    assert [(part.shares, count) for part, count in policy.in_layers(30)] == [
        (False, 25),
        (True, 5),
    ]
    assert [part.shares for part, _ in policy.in_phase("own").in_layers(30)] == [False]
    with pytest.raises(jvdm.ConfigError, match="from 0.5 to 0.1 of the rows .*numbers from 0"):
        TileBefore(begin=0.5, end=0.1).init(TokenGrid(2, 2, 2))


def test_a_tile_that_crosses_sections_is_told_a_blend():
    one, two = (TextStates(jnp.full((1, 3, 2), x), jnp.array([n])) for x, n in ((0.0, 1), (3.0, 2)))
    told = in_sections([one, two], (0, 9), 18)
    for frame, share, length in ((0, 0, 1), (3, 1, 2), (6, 2, 2), (9, 3, 2)):
        made = told.blended(jnp.int32(frame), 9)
        np.testing.assert_allclose(made.states, share, atol=1e-6)  # thirds of 3, as the paper's
        assert made.section is None and made.lengths.tolist() == [length]
    assert told.blended(jnp.int32(0), 18) is told


@pytest.fixture(scope="module")
def films(weights):
    """Latents of the system by what is changed of it; a tile is what nano knows."""
    base = load_system("ditctrl", nano.SYSTEM)
    tiles = dataclasses.replace(base.sampling.tiles, frames=3, overlap=2)

    def made(later, **changes):
        def system(loaded):
            rules = {"tiles": tiles, "policy": TileBefore(begin=0.0, end=1.0, layers=1.0)}
            return dataclasses.replace(
                loaded, sampling=dataclasses.replace(loaded.sampling, **rules | changes)
            )

        pipe = jvdm.load(weights, system=system, dtype="float32", progress=False)
        asked = {"seed": 0, "num_frames": 21, "progress": False, "output_type": "latent"}
        return np.asarray(pipe(PROMPT, prompt_at={1.1: later}, **asked))

    return made


def test_the_first_tile_keeps_its_prompt_and_sharing_carries_it_on(films):
    """Latent frames 0 to 2 are the first tile; the second section begins with frame 4 of 6."""
    shared, own = films(OTHER), films(OTHER, policy=TileBefore(layers=0.0))
    alone = films(PROMPT)
    same = films(PROMPT, policy=TileBefore(layers=0.0))
    assert np.abs(alone - same).max() > 1e-3  # keys of the tile before are other keys
    np.testing.assert_allclose(shared[:, 0], own[:, 0], atol=1e-5)  # the first tile alone has it
    changed = np.abs(shared - alone).max((0, 2, 3, 4))
    assert changed[-1] > 10 * changed[0]


def test_it_is_a_system_with_a_record(weights):
    pipe = jvdm.load(weights, system="ditctrl", progress=False)
    job = pipe.prepare(Request(prompt=PROMPT, prompt_at={2.75: OTHER}, num_frames=69))
    assert [first for first, _ in job.sections] == [9] and not job.warnings
    assert job.system.seen(job.matrix.window, 2, 4) == (9, 2, 4)
    with pytest.raises(jvdm.ConfigError, match="a stream with .*TileBefore"):
        pipe.stream(PROMPT)
