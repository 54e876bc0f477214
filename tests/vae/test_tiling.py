from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvdm.errors import ConfigError, ShapeError
from jvdm.vae import tiling
from jvdm.vae.video_vae import VideoVAE
from jvdm.vae.wan import WanVAE
from tests.vae.nano import NANO, assert_equal_but_rounding, bare, jitted, latents, params, video

# Higher and wider than a window of the nano model by no multiple of the tile, and a last
# chunk that is not full.
TILE, CHUNK = (3, 4), 2
HEIGHT, WIDTH, LATENT_FRAMES = 19, 22, 5


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    tile=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    reach=st.integers(0, 6),
)
def test_tiles_cover_the_video_and_windows_hold_what_tiles_depend_on(size, tile, reach):
    plan = tiling.make_tiling(size, tile, reach)
    covered = np.zeros(size, bool)
    for place in plan.tiles:
        for axis in range(2):
            start, end = place.start[axis], place.start[axis] + plan.size[axis]
            left, right = place.window[axis], place.window[axis] + plan.window[axis]
            assert 0 <= left <= max(start - reach, 0)
            assert min(end + reach, size[axis]) <= right <= size[axis]
        (y, x), (height, width) = place.start, plan.size
        covered[y : y + height, x : x + width] = True
    assert covered.all()
    assert all(w <= t + 2 * reach for w, t in zip(plan.window, tile, strict=True))


def test_decoding_in_pieces_equals_the_whole():
    z = latents(LATENT_FRAMES, HEIGHT, WIDTH)
    whole = jitted("decode")(z)
    options = {"tile": TILE, "chunk": CHUNK}
    assert len(tiling.make_tiling((HEIGHT, WIDTH), TILE, NANO.decoder_reach).tiles) > 4

    pieces = list(tiling.decode(NANO, params(), z, **options))
    assert [piece.shape[1] for piece in pieces] == [5, 8, 4]
    assert_equal_but_rounding(np.concatenate(pieces, axis=1), whole)


def test_encoding_in_pieces_equals_the_whole():
    frames = video(NANO.num_frames(LATENT_FRAMES), 8 * HEIGHT, 8 * WIDTH)
    whole = jitted("encode")(frames)
    tiled = tiling.encode(NANO, params(), frames, tile=TILE, chunk=CHUNK)
    assert_equal_but_rounding(tiled.mean, whole.mean)
    assert_equal_but_rounding(tiled.log_variance, whole.log_variance)


def test_bytes_encode_like_the_numbers_they_stand_for(rng):
    frames = rng.integers(0, 256, (1, 5, 16, 16, 3), np.uint8)
    tiled = tiling.encode(NANO, params(), frames, tile=tiling.TILE, chunk=tiling.CHUNK)
    assert_equal_but_rounding(tiled.mean, jitted("encode")(jnp.asarray(frames) / 255).mean)


def test_a_video_smaller_than_a_chunk_and_a_window_is_done_at_once():
    z = latents(2, 3, 2)
    (piece,) = tiling.decode(NANO, params(), z, tile=tiling.TILE, chunk=tiling.CHUNK)
    assert_equal_but_rounding(piece, jitted("decode")(z))


@pytest.mark.parametrize(
    ("vae", "cells", "expected"),
    [
        (VideoVAE(), (25, 32, 48), ((32, 48), 25)),  # 97 frames at 256 x 384
        (VideoVAE(), (31, 60, 104), (tiling.TILE, tiling.CHUNK)),
        (WanVAE(), (2, 60, 104), ((60, 104), 2)),
        (WanVAE(), (21, 60, 104), ((60, 104), 2)),  # 81 frames at 480 x 832
        (WanVAE(), (21, 90, 160), ((90, 160), 1)),
        (WanVAE(), (21, 180, 320), (WanVAE.tile, tiling.CHUNK)),
        (WanVAE(width=160, decoder_width=256, patch=2), (31, 44, 80), ((44, 80), 1)),  # 2.2
    ],
)
def test_the_features_that_are_computed_at_once_say_how_a_video_is_cut(vae, cells, expected):
    assert tiling.pieces(vae, (1, *cells)) == expected
    assert tiling.at_once(vae, (1, *cells)) == (expected == (cells[1:], cells[0]))


@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_what_is_larger_than_the_limit_is_cut_and_nothing_else(direction, monkeypatch):
    """A batch counts too: two clips of the largest size that is done at once are cut."""
    program, calls = tiling._window, []

    def spy(vae, method, params, piece, carry, corner, *, cell, size):
        calls.append((piece.shape, size))
        return program(vae, method, params, piece, carry, corner, cell=cell, size=size)

    def done(batch):
        calls.clear()
        if direction == "encode":
            return tiling.encode(NANO, params(), video(9, 48, 80, batch)).mean
        pieces = tiling.decode(NANO, params(), latents(3, 6, 10, batch))
        return np.concatenate(list(pieces), axis=1)

    whole = jitted(direction)
    monkeypatch.setattr(tiling, "_window", spy)
    pixels = 3 * 6 * 10 * 4 * 8 * 8
    monkeypatch.setattr(tiling, "WHOLE_VALUES", pixels * NANO.features_per_pixel)
    monkeypatch.setattr(tiling, "TILE", (2, 2))
    monkeypatch.setattr(tiling, "CHUNK", 2)
    start = {1: video(9, 48, 80, 1), 2: video(9, 48, 80, 2)}
    for batch, cut in ((1, False), (2, True)):
        x = start[batch] if direction == "encode" else latents(3, 6, 10, batch)
        expected = whole(x).mean if direction == "encode" else whole(x)
        assert_equal_but_rounding(done(batch), expected)
        assert (len(calls) > 1) == cut and (calls[0] == (x.shape, (6, 10))) == (not cut)


@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_larger_and_longer_videos_run_the_same_two_programs(direction, monkeypatch):
    """So the memory that a program needs does not grow with the video."""
    program: Any = tiling._window
    calls = []

    def spy(vae, method, params, piece, carry, corner, *, cell, size):
        shapes = jax.eval_shape(lambda *x: x, piece, carry, corner)
        calls.append((shapes, size))
        return program(vae, method, params, piece, carry, corner, cell=cell, size=size)

    monkeypatch.setattr(tiling, "_window", spy)

    def programs(latent_frames, height, width):
        calls.clear()
        if direction == "decode":
            z = latents(latent_frames, height, width)
            list(tiling.decode(NANO, params(), z, tile=TILE, chunk=CHUNK))
        else:
            x = video(NANO.num_frames(latent_frames), 8 * height, 8 * width)
            tiling.encode(NANO, params(), x, tile=TILE, chunk=CHUNK)
        kinds = {jax.tree.structure(shapes): (shapes, size) for shapes, size in calls}
        assert len(kinds) == 2
        assert all(kinds[jax.tree.structure(shapes)] == (shapes, size) for shapes, size in calls)
        return list(kinds.values())

    small = programs(3, 15, 16)
    compiled = program._cache_size()
    assert programs(8, 21, 33) == small
    assert program._cache_size() == compiled

    def bytes_of(lowered):
        return lowered.compile().memory_analysis().temp_size_in_bytes

    cell, method = (8, 8) if direction == "decode" else (1, 1), f"{direction}_chunk"
    windows = [
        bytes_of(program.lower(NANO, method, params(), *s, cell=cell, size=size))
        for s, size in small
    ]
    whole = jax.jit(bare(direction))
    start = latents(8, 21, 33) if direction == "decode" else video(29, 168, 264)
    assert max(windows) < bytes_of(whole.lower(params(), start)) / 4


def test_wrong_tiles_chunks_and_sizes_are_refused():
    z = latents(1, 1, 1)
    with pytest.raises(ConfigError, match=r"tile is \(0, 4\)"):
        tiling.decode(NANO, params(), z, tile=(0, 4))
    with pytest.raises(ConfigError, match="chunk is 0"):
        tiling.decode(NANO, params(), z, chunk=0)
    with pytest.raises(ShapeError, match="num_frames is 7; .*: 5 and 9"):
        tiling.encode(NANO, params(), video(7, 8, 8))
