"""Weights of errors against their formulas, the published loop, and what they must not see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ConfigError
from jvdm.samplers import rectified_flow, vp_cosine
from jvdm.samplers.loss_weights import FusedSNR, LossWeights, Unweighted

FLOW, COSINE = rectified_flow(), vp_cosine()
T = jax.random.uniform(jax.random.key(0), (3, 6), minval=0.05, maxval=0.98)
KINDS = ("x0", "eps", "v")
weigh = jax.jit(lambda rule, process, kind, t: rule(process, kind, t), static_argnums=(0, 1, 2))


def snr_of(process, t=T):
    return np.exp(2 * np.asarray(process.lam(t), np.float64))


def published(snr, kind, decay, clip):
    """The loop of Diffusion Forcing's code over frames, in NumPy."""
    limited, whole = np.minimum(snr, clip) / clip, snr / clip
    mean = np.zeros_like(snr)
    for frame in range(snr.shape[1]):
        share = limited[:, frame]
        mean[:, frame] = (
            decay * mean[:, frame - 1] + (1 - decay) * share if frame else limited[:, 0]
        )
    before = np.concatenate([np.zeros_like(mean[:, :1]), mean[:, :-1]], 1)
    numerator = clip * (1 - (1 - before * decay) * (1 - limited))
    fused = clip * (1 - (1 - before * decay) * (1 - whole))
    return numerator / {"eps": fused, "x0": 1.0, "v": fused + 1}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_without_memory_it_is_min_snr(kind):
    snr = snr_of(COSINE)
    expected = np.minimum(snr, 5.0) / {"eps": snr, "x0": 1.0, "v": snr + 1}[kind]
    np.testing.assert_allclose(weigh(FusedSNR(decay=0.0), COSINE, kind, T), expected, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_with_memory_it_is_the_published_loop(kind):
    expected = published(snr_of(COSINE), kind, 0.96, 5.0)
    np.testing.assert_allclose(weigh(FusedSNR(), COSINE, kind, T), expected, rtol=1e-4)


def test_an_error_counts_the_same_whatever_the_network_predicts():
    """Without memory: an error of x0, and what it makes of the velocity (x - x0) / t."""
    x0, velocity = (weigh(FusedSNR(decay=0.0), FLOW, kind, T) for kind in ("x0", "velocity"))
    np.testing.assert_allclose(velocity, x0 * T**2, rtol=1e-4)


def test_only_frames_before_a_frame_count_and_cleaner_ones_count_more():
    noisy = 0.5 + 0.5 * T  # below the limit, at which all count alike
    cleaner = noisy.at[:, 2].set(0.4)
    one, two = (np.asarray(weigh(FusedSNR(), FLOW, "x0", t)) for t in (noisy, cleaner))
    np.testing.assert_array_equal(one[:, :2], two[:, :2])
    assert (two[:, 2:] > one[:, 2:]).all()
    alone = np.asarray(weigh(FusedSNR(decay=0.0), FLOW, "x0", noisy))
    assert (one[:, 1:] > alone[:, 1:]).all()
    np.testing.assert_allclose(one[:, 0], alone[:, 0], rtol=1e-5)


@pytest.mark.parametrize("kind", [*KINDS, "velocity"])
def test_clean_frames_and_pure_noise_have_finite_weights(kind):
    t = jnp.array([[1.0, 1.0, 0.0, 1.0, 0.0]])
    for process in (FLOW, COSINE):
        weights = np.asarray(weigh(FusedSNR(), process, kind, t))
        assert np.isfinite(weights).all() and (weights >= 0).all()


def test_unweighted_is_one():
    assert isinstance(Unweighted(), LossWeights) and isinstance(FusedSNR(), LossWeights)
    assert (Unweighted()(FLOW, "velocity", T) == 1).all()


@pytest.mark.parametrize("numbers", [{"decay": 1.0}, {"decay": -0.1}, {"clip": 0.0}])
def test_numbers_outside_are_refused(numbers):
    with pytest.raises(ConfigError, match="fused SNR with decay"):
        FusedSNR(**numbers)
