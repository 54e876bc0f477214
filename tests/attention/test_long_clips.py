"""Policies for clips longer than those of training: fused windows, bands that are joined."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvdm
from jvdm.attention import AttentionCall, FusedWindows, SpectralBlend, TokenGrid
from jvdm.recipes import load_system
from jvdm.samplers import Call, Row, WindowShuffle
from jvdm.values import from_data, to_data
from pallas_kernels import block_sparse_attention
from tests.generate import nano

GRID = TokenGrid(11, 2, 3, batch=2, heads=2, head_dim=8)
SHAPE = (2, GRID.tokens, 2, 8)


def call_of(grid=GRID):
    row = Row(jnp.int32(0), jnp.int32(0), jnp.zeros(grid.frames, bool), jnp.int32(0))
    return AttentionCall(jnp.int32(0), row, jnp.zeros((2, grid.frames)), grid)


@pytest.fixture(scope="module")
def qkv():
    return tuple(jax.random.normal(jax.random.key(i), SHAPE) for i in range(3))


def dense(q, k, v, allowed: Any = None) -> Any:
    """Attention in the plainest way; `allowed` says which token reads which."""
    scores = jnp.einsum("blnd,bmnd->bnlm", q, k) / jnp.sqrt(q.shape[-1])
    scores = scores if allowed is None else jnp.where(allowed, scores, -jnp.inf)
    return jnp.einsum("bnlm,bmnd->blnd", jax.nn.softmax(scores, -1), v)


def among(q, k, v, mask):
    if mask is None:
        return dense(q, k, v)
    return block_sparse_attention(q, k, v, mask, implementation="xla")


def attended(policy, q, k, v, grid=GRID):
    policy.init(grid)
    return policy.attend(q, k, v, None, call_of(grid), among)[0]


def tokens(frames, count=11):
    """Tokens of these frames."""
    return np.isin(np.arange(count * 6) // 6, frames)


def test_a_frame_gets_the_weighted_mean_of_its_windows(qkv):
    """Windows of four frames, two apart, and a last one that ends with the clip."""
    sums, weights = np.zeros(SHAPE), np.zeros(11)
    for start in (0, 2, 4, 6, 7):
        frames = np.arange(start, start + 4)
        share = np.array([1.0, 2.0, 2.0, 1.0])
        inside = tokens(frames)
        part = dense(*(x[:, inside] for x in qkv))
        sums[:, inside] += np.repeat(share, 6)[None, :, None, None] * part
        weights[frames] += share
    expected = sums / np.repeat(weights, 6)[None, :, None, None]
    np.testing.assert_allclose(attended(FusedWindows(4, 2), *qkv), expected, atol=2e-6)


def test_no_frame_reads_beyond_its_windows(qkv):
    q, k, v = qkv
    plain = attended(FusedWindows(4, 2), q, k, v)
    other = attended(FusedWindows(4, 2), q, k, v + 5.0 * tokens([10])[None, :, None, None])
    changed = np.abs(other - plain).max((0, 2, 3)) > 1e-4
    np.testing.assert_array_equal(changed, tokens([7, 8, 9, 10]))


def test_what_is_no_longer_than_a_window_is_attended_to_whole(qkv):
    for policy in (FusedWindows(11, 4), SpectralBlend(11)):
        np.testing.assert_array_equal(attended(policy, *qkv), dense(*qkv))


@pytest.mark.parametrize(
    ("count", "first"),
    [(8, [0, 0, 0, 1, 2, 3, 4, 4]), (3, [0, 0, 0]), (9, [0, 0, 0, 1, 2, 3, 4, 5, 5])],
)
def test_windows_of_near_frames_are_full_and_inside(count, first):
    near = SpectralBlend(4).near(count)
    assert (near.sum(1) == min(4, count)).all()
    np.testing.assert_array_equal(near.argmax(1), np.minimum(first, max(count - 4, 0)))


def test_a_wide_filter_is_attention_to_all_and_a_narrow_one_to_near_frames(qkv):
    near = np.kron(SpectralBlend(5).near(11), np.ones((6, 6), bool))
    for cutoff, expected in ((1e4, dense(*qkv)), (1e-4, None)):
        found = attended(SpectralBlend(5, cutoff), *qkv)
        if expected is None:  # the mean alone is of all frames
            local, whole = dense(*qkv, allowed=near), dense(*qkv)
            expected = local + (whole - local).mean(1, keepdims=True)
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_bands_are_joined_as_the_paper_says(qkv):
    """Its formula with shifted axes, in float64."""
    near = np.kron(SpectralBlend(5).near(11), np.ones((6, 6), bool))
    layout = (2, 11, 2, 3, 2, 8)
    slow, fast = (
        np.asarray(x, np.float64).reshape(layout) for x in (dense(*qkv), dense(*qkv, allowed=near))
    )
    axes, squares = (1, 2, 3), 0.0
    for axis in axes:
        size = layout[axis]
        frequency = np.fft.fftshift(np.fft.fftfreq(size)) * 2
        squares = (
            squares + (frequency.reshape([-1 if i == axis else 1 for i in range(6)]) / 0.25) ** 2
        )
    low = np.exp(-0.5 * squares)
    spectra = [np.fft.fftshift(np.fft.fftn(x, axes=axes), axes=axes) for x in (slow, fast)]
    joined = np.fft.ifftshift(low * spectra[0] + (1 - low) * spectra[1], axes=axes)
    expected = np.fft.ifftn(joined, axes=axes).real.reshape(SHAPE)
    np.testing.assert_allclose(attended(SpectralBlend(5), *qkv), expected, atol=2e-6)


@pytest.mark.parametrize(
    "policy", [FusedWindows(4, 0), FusedWindows(4, 5), SpectralBlend(0), SpectralBlend(cutoff=0.0)]
)
def test_windows_and_filters_that_are_none_are_refused(policy):
    with pytest.raises(jvdm.ConfigError, match="use "):
        policy.init(GRID)


@pytest.mark.parametrize("name", ["freenoise", "freelong"])
def test_systems_make_long_clips(name):
    system = load_system(name, nano.SYSTEM)
    assert from_data(to_data(system.sampling)) == system.sampling
    assert system.sampling.noise == WindowShuffle(8, 4)
    small = dataclasses.replace(system.sampling.policy, frames=2)
    if name == "freenoise":
        small = dataclasses.replace(small, stride=1)
    sampling = dataclasses.replace(system.sampling, policy=small)
    system = dataclasses.replace(system, sampling=sampling)
    params = nano.drawn(nano.SYSTEM.init_denoiser, jax.random.key(0))
    x, ids = (
        jax.random.normal(jax.random.key(1), (1, 5, 4, 4, 4)),
        jnp.asarray(system.text.read(("a", ""))[0]),
    )

    def clean(system, x):
        told = system.conditions(params, ids)
        call = Call.at(jnp.full(x.shape[:2], 0.5))
        return system.denoiser(params, told)(x, call, system.start(x.shape, x.shape[1]))[0].x0

    whole, plain = clean(system, x), clean(nano.SYSTEM, x)
    assert np.isfinite(whole).all() and np.abs(whole - plain).max() > 1e-3
    np.testing.assert_allclose(clean(system, x[:, :2]), clean(nano.SYSTEM, x[:, :2]), atol=1e-5)
