"""The nearest centroids: against distances one by one, and what the kernel for Hopper lowers to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import KernelUnavailable, nearest
from pallas_kernels.centroids_hopper import labels
from tests.pallas_kernels.hopper import compiled_for_h200
from tests.pallas_kernels.test_mosaic_gpu import on_hopper

# Samples, tokens, heads, features, centroids.
SIZES = {"plain": (1, 512, 2, 128, 128), "odd": (2, 401, 3, 64, 37), "narrow": (1, 90, 2, 40, 300)}
CASES = pytest.mark.parametrize("case", SIZES)


def tokens(case, dtype="float32"):
    batch, count, heads, size, clusters = SIZES[case]
    one, two = jax.random.split(jax.random.key(0))
    x = jax.random.normal(one, (batch, count, heads, size)).astype(dtype)
    centroids = jax.random.normal(two, (batch, heads, clusters, size))
    return x, centroids.at[:, :, 5:10:4].set(x[:, :1].swapaxes(1, 2))  # two are the first token


def distances(x, centroids):
    x, centroids = (np.asarray(part.astype("float32"), np.float64) for part in (x, centroids))
    apart = np.moveaxis(x, 2, 1)[:, :, :, None] - centroids[:, :, None]
    return np.square(apart).sum(-1)


@CASES
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_centroid_is_nearer_and_of_equal_ones_the_first_is_taken(case, dtype, monkeypatch):
    monkeypatch.setattr("pallas_kernels.centroids.CHUNK", 100)
    x, centroids = tokens(case, dtype)
    away = distances(x, centroids.astype(dtype))
    found = np.asarray(nearest(x, centroids, implementation="xla"))
    np.testing.assert_array_equal(found, away.argmin(-1))
    assert (found[..., 0] == 5).all() and not (found == 9).any()


@on_hopper
@CASES
def test_the_kernel_finds_what_a_loop_does(case):
    x, centroids = tokens(case, "bfloat16")
    found = nearest(x, centroids, implementation="mosaic_gpu")
    away = distances(x, centroids.astype("bfloat16"))
    best = np.take_along_axis(away, np.asarray(found)[..., None], -1)[..., 0]
    np.testing.assert_allclose(best, away.min(-1), rtol=1e-2)
    assert np.mean(found == away.argmin(-1)) > 0.99 and (found[..., 0] == 5).all()


def test_the_kernel_is_refused_elsewhere_and_lowers_without_a_gpu():
    x, centroids = tokens("plain", "bfloat16")
    if jax.default_backend() != "gpu":
        with pytest.raises(KernelUnavailable, match="mosaic_gpu: the default device is"):
            nearest(x, centroids, implementation="mosaic_gpu")
    given = x, centroids.astype(x.dtype), jnp.zeros(centroids.shape[:3])
    traced = jax.jit(functools.partial(labels, processors=132)).trace(*given)
    assert traced.lower(lowering_platforms=("cuda",)).as_text().count("@mosaic_gpu") == 1


@pytest.mark.slow
def test_the_kernel_for_h200_keeps_everything_in_registers(tmp_path, monkeypatch):
    x, centroids = tokens("plain", "bfloat16")
    given = x, centroids.astype(x.dtype), jnp.zeros(centroids.shape[:3])
    kernel = functools.partial(labels, processors=132)
    (report,) = compiled_for_h200(kernel, given, tmp_path, monkeypatch)
    assert "0 bytes spill stores, 0 bytes spill loads" in report
