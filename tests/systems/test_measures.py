"""Measures of the tables of systems, on films of which one knows what they should say."""

import numpy as np

from tests.systems.long_clips import BANDS, WINDOW, measured, power

SIZE = 16


def film(length: int = 2 * WINDOW - 1) -> np.ndarray:
    """Two clips of noise, 0..1."""
    return np.random.default_rng(0).random((2, length, SIZE, SIZE, 3)).astype(np.float32)


def test_bands_share_the_power_of_a_window_and_lose_none():
    frames = film()
    parts = np.stack([frames[:, :WINDOW], frames[:, WINDOW - 1 :]])
    centred = parts - parts.mean((2, 3, 4), keepdims=True)
    whole = (centred**2).mean(-1).sum((2, 3, 4)) * WINDOW * SIZE**2
    bands = power(frames)
    assert bands.shape == (2, 2, *(len(edges) - 1 for edges in BANDS)) and (bands > 0).all()
    np.testing.assert_allclose(bands.sum((2, 3)), whole, rtol=1e-4)


def test_a_pattern_is_in_the_band_of_how_fast_and_fine_it_is():
    t, y = np.arange(WINDOW), np.arange(SIZE)
    for time, place in ((0, 3), (1, 1), (2, 0)):
        fast = np.cos(2 * np.pi * (0, 2, 12)[time] / WINDOW * t)
        fine = np.cos(2 * np.pi * (0, 1, 2, 6)[place] / SIZE * y)
        waves = 0.5 + 0.4 * np.broadcast_to(
            fast[None, :, None, None, None] * fine[None, None, :, None, None],
            (1, WINDOW, SIZE, SIZE, 3),
        )
        (bands,) = power(waves.astype(np.float32))
        assert bands[0, time, place] > 0.999 * bands.sum()


def test_flicker_is_octaves_above_the_short_clip_and_the_same_film_none():
    short = film(WINDOW)
    colors = np.zeros((2, 1), int)
    same = measured(np.concatenate([short, short[:, 1:]], 1), short, colors)
    assert same["spectrum"] < 0.5  # a repeated film is not quite periodic in its second window
    still = np.broadcast_to(short[:, :1], short.shape)
    flicker = np.where(np.arange(WINDOW)[None, :, None, None, None] % 3 == 0, 0.2, 0.0)
    noisy, rest = (still * 0.5 + part * short for part in (flicker, flicker / 4))
    long = np.concatenate([noisy, noisy[:, 1:]], 1)
    row = measured(long.astype(np.float32), rest.astype(np.float32), colors)
    assert row["fast"] > 2 and row["spectrum"] > 1 and abs(same["fast"]) < 0.5
