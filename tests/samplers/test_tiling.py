import typing

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ConfigError
from jvdm.samplers import (
    Call,
    ClassifierFree,
    Denoised,
    Euler,
    Tiles,
    fused,
    fused_carry,
    guided,
    lag_matrix,
    linspace_levels,
    rectified_flow,
    sample,
)
from jvdm.samplers.tiling import Weights
from tests.samplers.problems import mixture_denoiser, noise_like

FLOW, KEY = rectified_flow(), jax.random.key(0)
FRAMES, HEIGHT, WIDTH = 9, 6, 5
NOISE = noise_like((2, FRAMES, HEIGHT, WIDTH, 3))
LEVELS = linspace_levels(3)
CASES = {
    "frames": Tiles(4, 2),
    "blocks": Tiles(5, 4, weights="middle"),
    "all": Tiles(4, 1, 3, 4, 2, "flat"),
}
each_case = pytest.mark.parametrize("name", CASES)


def call_of(frames):
    return Call.at(jnp.tile(jnp.linspace(0.2, 0.9, frames), (2, 1)))


def of_everything(denoise):
    return lambda place: denoise


@hypothesis.settings(max_examples=15)
@hypothesis.given(data=st.data())
def test_the_weights_of_all_tiles_sum_to_one_in_every_place(data):
    whole = tuple(data.draw(st.integers(1, 12)) for _ in range(3))
    sizes = [data.draw(st.none() | st.integers(1, 6)) for _ in range(3)]
    smallest = min([size for size in sizes[1:] if size] or [6])
    overlap = data.draw(st.integers(0, (sizes[0] or 6) - 1))
    side = data.draw(st.integers(0, smallest - 1))
    weights = data.draw(st.sampled_from(typing.get_args(Weights)))
    tiles = Tiles(sizes[0], overlap, sizes[1], sizes[2], side, weights)
    sums, size = np.zeros(whole), tiles.size(*whole)
    for corner, share in zip(tiles.places(*whole), tiles.shares(*whole), strict=True):
        assert (share >= 0).all()
        sums[tuple(slice(a, a + n) for a, n in zip(corner, size, strict=True))] += share
    np.testing.assert_allclose(sums, 1, atol=1e-6)
    starts = np.unique(tiles.places(*whole)[:, 0])
    assert (np.diff(starts) <= size[0] - overlap).all()  # neighbours share as many, or more


@each_case
def test_a_network_that_treats_all_places_alike_says_what_it_would_of_the_whole(name):
    denoise, call = mixture_denoiser(FLOW), call_of(FRAMES)
    tiled = jax.jit(fused(CASES[name], of_everything(denoise)))
    got, expected = tiled(NOISE, call, None)[0], denoise(NOISE, call, None)[0]
    for value, whole in zip(got, expected, strict=True):
        np.testing.assert_allclose(value, whole, atol=1e-5)


def test_runs_of_tiles_are_runs_of_the_whole_and_one_tile_is_an_ordinary_call():
    denoise, matrix = mixture_denoiser(FLOW), lag_matrix(LEVELS, FRAMES, lag=1)

    def run(tiles):
        network = denoise if tiles is None else fused(tiles, of_everything(denoise))
        return jax.jit(lambda: sample(network, Euler(), FLOW, matrix, NOISE, KEY).x)()

    whole = run(None)
    np.testing.assert_array_equal(run(Tiles(FRAMES + 3, 2, HEIGHT)), whole)
    np.testing.assert_allclose(run(CASES["frames"]), whole, atol=1e-5)


def averaged(x, call, carry):
    """A network that sees all frames at once: clean data are the mean of its window."""
    mean = jnp.broadcast_to(x.mean(axis=1, keepdims=True), x.shape)
    return Denoised(mean, x - mean), carry


def test_slopes_are_those_of_their_names():
    """Of the first of two tiles of six that share two, and of a tile in between."""
    cosine = np.sin(np.pi * np.arange(1, 7) / 7) ** 2
    expected = {
        "linear": [1, 1, 1, 1, 2 / 3, 1 / 3],
        "triangle": [1, 1, 1, 1, 2 / 3, 1 / 3],
        "hann": [1, 1, 1, 1, *(cosine[4:] / (cosine[4:] + cosine[:2]))],
    }
    for name, shares in expected.items():
        weights: typing.Any = name
        found = Tiles(6, 2, weights=weights).shares(10, 1, 1)
        np.testing.assert_allclose(found[0, :, 0, 0], shares, rtol=1e-6)
        np.testing.assert_allclose(found[1, :, 0, 0], shares[::-1], rtol=1e-6)
    # Ten frames, of which the last tile shares six: slopes of one frame, not of the tile.
    late = Tiles(8, 1, weights="linear").shares(10, 1, 1)[0, :, 0, 0]
    np.testing.assert_allclose(late, [1, 1, 2 / 3, 0.5, 0.5, 0.5, 0.5, 1 / 3], rtol=1e-6)


def test_tiles_share_a_place_by_their_weights():
    tiles, x = Tiles(4, 2, weights="flat"), NOISE[:, :6]
    call = call_of(6)
    said, _ = fused(tiles, of_everything(averaged))(x, call, None)
    first, second = x[:, :4].mean(axis=1), x[:, 2:].mean(axis=1)
    expected = [first, first, (first + second) / 2, (first + second) / 2, second, second]
    np.testing.assert_allclose(said.x0, jnp.stack(expected, axis=1), atol=1e-6)
    np.testing.assert_allclose(said.x0 + said.eps, x, atol=1e-6)
    alone = fused(Tiles(4, 2, weights="middle"), of_everything(averaged))(x, call, None)[0].x0
    expected = [first, first, first, second, second, second]
    np.testing.assert_allclose(alone, jnp.stack(expected, axis=1), atol=1e-6)


def test_a_tile_is_told_of_its_own_frames_alone():
    call = call_of(6)
    row = call.row._replace(moving=call.t[0] > 0.5, level=jnp.arange(6))
    seen = []

    def look(x, call, carry):
        seen.append((call.row.moving.shape, call.row.level.shape))
        same = jnp.broadcast_to(call.row.level[None, :, None, None, None] + 0.0, x.shape)
        return Denoised(same, x - same), carry

    said, _ = fused(Tiles(4, 2), of_everything(look))(NOISE[:, :6], call._replace(row=row), None)
    np.testing.assert_allclose(said.x0[0, :, 0, 0, 0], jnp.arange(6.0), atol=1e-6)
    assert set(seen) == {((4,), (4,))}


def test_clean_frames_are_left_to_one_tile_where_noisy_ones_are_shared():
    x, call = NOISE[:, :6], call_of(6)  # levels from .2 to .9
    either = [
        np.asarray(fused(tiles, of_everything(averaged))(x, call, None)[0].x0)
        for tiles in (Tiles(4, 2), Tiles(4, 2, weights="middle"), Tiles(4, 2, fused_above=0.5))
    ]
    shared, owned, gated = either
    noisy = np.asarray(call.t[0]) > 0.5
    assert noisy[3] and not noisy[2]  # both are in two tiles
    np.testing.assert_allclose(gated, np.where(noisy[:, None, None, None], shared, owned))
    assert (shared[:, 2:4] != owned[:, 2:4]).all((0, 2, 3, 4)).all()
    with pytest.raises(ConfigError, match="fused above the level 2"):
        Tiles(4, fused_above=2.0)


def test_a_tile_is_told_its_place_its_levels_and_its_own_carry():
    tiles, call = Tiles(4, 2, 3, None, 0), call_of(6)

    def denoiser_of(place):
        def network(x, told, carry):
            ok = (told.t == jax.lax.dynamic_slice_in_dim(call.t, place.frame, 4, 1)).all()
            first = (told.row.start == place.frame) & (told.row.frame == place.frame)
            ok &= first & (told.row.write.shape == (4,))
            ok &= x.shape == (2, 4, 3, WIDTH, 3)
            corner = jax.lax.dynamic_slice(
                NOISE, (0, place.frame, place.row, 0, 0), (2, 4, 3, WIDTH, 3)
            )
            ok &= (x == corner).all() & (carry["calls"] == 0)
            return Denoised(x, x), {"calls": carry["calls"] + 1, "first": place.frame, "seen": ok}

        return network

    carry = {"calls": jnp.array(0), "first": jnp.array(9), "seen": jnp.array(False)}
    carry = fused_carry(tiles, carry, 6, HEIGHT, WIDTH)
    _, after = fused(tiles, denoiser_of)(NOISE[:, :6], call, carry)
    np.testing.assert_array_equal(after["first"], [0, 0, 2, 2])
    assert after["seen"].all() and (after["calls"] == 1).all()


def test_guidance_goes_over_the_fused_branches():
    """Weighing branches and fusing tiles are both linear, so their order does not matter."""
    tiles, call = Tiles(4, 2), call_of(FRAMES)
    more = {"low": averaged, "high": lambda x, call, carry: (Denoised(2 * x, -x), carry)}

    def denoiser_of(names):
        def both(x, call, carry):
            parts = zip(jnp.split(x, len(names)), names, strict=True)
            said = [
                more["high" if name == "prompt" else "low"](part, call, None)[0]
                for part, name in parts
            ]
            return Denoised(*(jnp.concatenate(values) for values in zip(*said, strict=True))), carry

        return both

    rule = ClassifierFree(3.0)
    inside = guided(rule, lambda names: fused(tiles, of_everything(denoiser_of(names))), FLOW)
    outside = fused(tiles, of_everything(guided(rule, denoiser_of, FLOW)))
    for got, expected in zip(
        inside(NOISE, call, None)[0], outside(NOISE, call, None)[0], strict=True
    ):
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"frames": 4, "overlap": 4}, "tiles of frames 4 that share 4"),
        ({"height": 0}, "tiles of height 0"),
        ({"width": 3, "side_overlap": -1}, "tiles of width 3 that share -1"),
    ],
)
def test_tiles_that_cannot_be_are_refused(sizes, message):
    with pytest.raises(ConfigError, match=message):
        Tiles(**sizes)
