import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ConfigError
from jvdm.samplers.initialisers import (
    NoiseInitialiser,
    OffsetNoise,
    PoolPermute,
    ProgressiveNoise,
    SharedNoise,
    WindowShuffle,
    mix_frequencies,
    mixed_noise,
    report_noise,
)
from jvdm.samplers.noise import initial_noise

SHAPE, FRAMES, SAMPLES = (8, 8, 4), 8, jnp.arange(32)
# Five standard errors of a mean of 32 * 256 products of unit variance; variances have twice that
# variance, and neighbouring frames add nothing as samples are over entries.
TOLERANCE = 5 * (2 / (32 * 256)) ** 0.5
INITIALISERS = (
    SharedNoise(0.2),
    mixed_noise(1.0),
    ProgressiveNoise(2.0),
    WindowShuffle(4, 2),
    PoolPermute(2, 2),
    initial_noise,
)
DISTANCE = abs(np.arange(FRAMES)[:, None] - np.arange(FRAMES)[None, :])


@pytest.mark.parametrize(
    "initialiser", INITIALISERS, ids=lambda one: getattr(one, "__name__", str(one))
)
def test_frames_drawn_apart_equal_the_whole_and_have_unit_variance(initialiser, key):
    assert isinstance(initialiser, NoiseInitialiser)
    whole = initialiser(key, SAMPLES, FRAMES, SHAPE)
    part = initialiser(key, SAMPLES[5:7], 3, SHAPE, 4)
    # ProgressiveNoise adds in the order that its matrix product likes: a few roundings.
    np.testing.assert_allclose(part, whole[5:7, 4:7], atol=2e-6)
    np.testing.assert_allclose(report_noise(whole).variance, 1.0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "initialiser, off_diagonal",
    [
        (SharedNoise(0.2), 0.04 / 0.68),
        (mixed_noise(1.0), 0.5),
        (mixed_noise(0.0), 0.0),
        (ProgressiveNoise(2.0), (2 / 5**0.5) ** DISTANCE),
    ],
    ids=str,
)
def test_correlations_are_as_stated(initialiser, off_diagonal, key):
    correlation = report_noise(initialiser(key, SAMPLES, FRAMES, SHAPE)).correlation
    expected = np.where(DISTANCE == 0, 1.0, off_diagonal)
    np.testing.assert_allclose(correlation, expected, atol=TOLERANCE)


def test_the_published_shared_noise_loses_variance(key):
    noise = SharedNoise(0.2, preserve_variance=False)(key, SAMPLES, FRAMES, SHAPE)
    np.testing.assert_allclose(report_noise(noise).variance, 0.68, atol=TOLERANCE)


def test_shuffled_windows_hold_the_noise_of_the_first(key):
    shuffle = WindowShuffle(6, 3)
    indices = np.asarray(shuffle.indices(key, jnp.arange(9), jnp.arange(18)))
    np.testing.assert_array_equal(indices[:, :6], np.tile(np.arange(6), (9, 1)))
    for first in (3, 6, 9, 12):
        window = np.sort(indices[:, first : first + 6])
        np.testing.assert_array_equal(window, np.tile(np.arange(6), (9, 1)))
    assert len(np.unique(indices, axis=0)) > 3  # each sample has an order of its own
    noise = shuffle(key, jnp.arange(9), 18, (2,))
    taken = np.take_along_axis(np.asarray(noise[:, :6]), indices[..., None], axis=1)
    np.testing.assert_array_equal(noise, taken)


@pytest.mark.parametrize("window, stride", [(4, 3), (4, 0), (2, 4)])
def test_groups_must_fill_the_window(window, stride):
    with pytest.raises(ConfigError, match=f"window {window}, stride {stride}"):
        WindowShuffle(window, stride)


def test_a_share_lies_in_the_unit_interval():
    with pytest.raises(ConfigError, match=r"ratio 1\.2"):
        SharedNoise(1.2)


def test_a_pool_repeats_no_frame_within_its_overlap(key):
    indices = np.asarray(PoolPermute(4, 3).indices(key, jnp.arange(9), 40))
    np.testing.assert_array_equal(indices[:, :7], np.tile(np.arange(7), (9, 1)))
    for row in indices:
        for frame in range(7):
            assert (np.diff(np.flatnonzero(row == frame)) > 3).all()
        for first in range(7, 40 - 3, 4):  # a block and what it may not repeat are the pool
            assert sorted(row[first - 3 : first + 4]) == list(range(7))
    assert len(np.unique(indices, axis=0)) > 3
    with pytest.raises(ConfigError, match="blocks of 0"):
        PoolPermute(0, 3)


def test_an_offset_is_one_number_of_each_channel(key):
    strength, samples = 2.0, jnp.arange(200)
    noise = np.asarray(OffsetNoise(strength)(key, samples, 3, (4, 4, 2)), np.float64)
    plain = np.asarray(initial_noise(key, samples, 3, (4, 4, 2)), np.float64)
    offset = (noise * 5**0.5 - plain) / strength
    np.testing.assert_allclose(
        offset, np.broadcast_to(offset[:, :1, :1, :1], offset.shape), atol=1e-5
    )
    values = offset[:, 0, 0, 0]
    assert abs(values.mean()) < 0.2 and abs(values.std() - 1) < 0.15
    assert abs(np.corrcoef(values[:, 0], values[:, 1]).min()) < 0.25


def test_frequencies_are_mixed_low_from_one_and_high_from_the_other(key):
    low, high = (initial_noise(key, jnp.arange(2) + n, 8, (8, 8, 2)) for n in (0, 5))
    np.testing.assert_allclose(mix_frequencies(low, low), low, atol=1e-5)
    got = mix_frequencies(low, high, 0.2)
    np.testing.assert_allclose(got.mean((1, 2, 3)), low.mean((1, 2, 3)), atol=1e-5)
    fastest = (-1.0) ** np.indices((8, 8, 8)).sum(axis=0)[None, ..., None]
    np.testing.assert_allclose(
        (got * fastest).mean((1, 2, 3)), (high * fastest).mean((1, 2, 3)), atol=1e-4
    )
