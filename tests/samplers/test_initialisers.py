import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ConfigError
from jvdm.samplers.initialisers import (
    NoiseInitialiser,
    ProgressiveNoise,
    SharedNoise,
    WindowShuffle,
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
