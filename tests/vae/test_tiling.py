import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvdm.errors import ConfigError, ShapeError
from jvdm.vae import tiling
from jvdm.vae.video_vae import VideoVAE
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


def test_tiled_and_streamed_decode_equal_the_whole():
    z = latents(LATENT_FRAMES, HEIGHT, WIDTH)
    whole = jitted("decode")(z)
    options = {"tile": TILE, "chunk": CHUNK}
    assert len(tiling.make_tiling((HEIGHT, WIDTH), TILE, NANO.decoder_reach).tiles) > 4

    pieces = list(tiling.stream_decode(NANO, params(), z, **options))
    assert [piece.shape[1] for piece in pieces] == [5, 8, 4]
    assert_equal_but_rounding(np.concatenate(pieces, axis=1), whole)

    tiled = tiling.decode_tiled(NANO, params(), z, **options)
    np.testing.assert_array_equal(tiled, np.concatenate(pieces, axis=1))


def test_tiled_encode_equals_the_whole():
    frames = video(VideoVAE.num_frames(LATENT_FRAMES), 8 * HEIGHT, 8 * WIDTH)
    whole = jitted("encode")(frames)
    tiled = tiling.encode_tiled(NANO, params(), frames, tile=TILE, chunk=CHUNK)
    assert_equal_but_rounding(tiled.mean, whole.mean)
    assert_equal_but_rounding(tiled.log_variance, whole.log_variance)


def test_bytes_encode_like_the_numbers_they_stand_for(rng):
    frames = rng.integers(0, 256, (1, 5, 16, 16, 3), np.uint8)
    tiled = tiling.encode_tiled(NANO, params(), frames)
    assert_equal_but_rounding(tiled.mean, jitted("encode")(jnp.asarray(frames) / 255).mean)


def test_a_video_smaller_than_a_chunk_and_a_window_is_done_at_once():
    z = latents(2, 3, 2)
    (piece,) = tiling.stream_decode(NANO, params(), z)
    assert_equal_but_rounding(piece, jitted("decode")(z))


@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_larger_and_longer_videos_run_the_same_two_programs(direction, monkeypatch):
    """So the memory that a program needs does not grow with the video."""
    name = f"_{direction}_window"
    program, calls = getattr(tiling, name), []

    def spy(vae, params, piece, carry, corner, *, size):
        shapes = jax.eval_shape(lambda *x: x, piece, carry, corner)
        calls.append((shapes, size))
        return program(vae, params, piece, carry, corner, size=size)

    monkeypatch.setattr(tiling, name, spy)

    def programs(latent_frames, height, width):
        calls.clear()
        if direction == "decode":
            z = latents(latent_frames, height, width)
            tiling.decode_tiled(NANO, params(), z, tile=TILE, chunk=CHUNK)
        else:
            x = video(VideoVAE.num_frames(latent_frames), 8 * height, 8 * width)
            tiling.encode_tiled(NANO, params(), x, tile=TILE, chunk=CHUNK)
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

    windows = [bytes_of(program.lower(NANO, params(), *s, size=size)) for s, size in small]
    whole = jax.jit(bare(direction))
    start = latents(8, 21, 33) if direction == "decode" else video(29, 168, 264)
    assert max(windows) < bytes_of(whole.lower(params(), start)) / 4


def test_wrong_tiles_chunks_and_sizes_are_refused():
    z = latents(1, 1, 1)
    with pytest.raises(ConfigError, match=r"tile is \(0, 4\)"):
        tiling.decode_tiled(NANO, params(), z, tile=(0, 4))
    with pytest.raises(ConfigError, match="chunk is 0"):
        tiling.stream_decode(NANO, params(), z, chunk=0)
    with pytest.raises(ShapeError, match="num_frames is 7; .*: 5 and 9"):
        tiling.encode_tiled(NANO, params(), video(7, 8, 8))
