"""What a network is told of finished frames: errors die out where they would add up."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ConfigError
from jvdm.samplers import (
    Call,
    Denoised,
    Euler,
    Stabilised,
    cached,
    freeze,
    lag_matrix,
    linspace_levels,
    rectified_flow,
    sample,
    stream_init,
    stream_rows,
    stream_step,
    synchronous,
    vp_cosine,
)
from jvdm.samplers.process import expand

KEY = jax.random.key(0)
LEVEL = 0.1
STEP = 0.05  # variance of what a frame adds to the one before


def walk_denoiser(process, error):
    """A denoiser of pairs: the first frame has variance 1, the second adds `STEP` to it.

    It is exact, but for data of the second that are too large by `error`.
    """

    def denoise(x, call, carry):
        alpha, sigma = (expand(part(call.t), x) for part in (process.alpha, process.sigma))
        power = alpha**2 + sigma**2
        before, left = (alpha * x / power)[:, :1], (sigma**2 / power)[:, :1]
        variance, alpha_1 = STEP + left, alpha[:, 1:]
        share = alpha_1 * variance / (alpha_1**2 * variance + sigma[:, 1:] ** 2)
        data = (1.0 + error) * (before + share * (x[:, 1:] - alpha_1 * before))
        x0 = jnp.concatenate([before, data], 1)
        return Denoised(x0, (x - alpha * x0) / jnp.where(sigma == 0, 1.0, sigma)), carry

    return denoise


@functools.partial(jax.jit, static_argnames="error")
def sizes_of_frames(level, error=0.03):
    """Mean squares of 150 frames of streams whose network errs and is told a level."""
    process, rows = rectified_flow(), stream_rows(linspace_levels(4), 4, 1, context=1)
    denoise = Stabilised(level).around(walk_denoiser(process, error), process)
    state = stream_init(denoise, Euler(), process, rows, (64, 1, 1, 1), KEY)

    def step(state, _):
        return stream_step(denoise, Euler(), process, rows, state)

    return (jax.lax.scan(step, state, None, 150)[1] ** 2).mean((1, 2, 3, 4, 5))


def test_a_stream_whose_network_errs_diverges_without_and_does_not_with():
    """Every frame is 3 % too large: its square grows by 6 %, of which level .25 takes 19 %."""
    plain, told = (np.asarray(sizes_of_frames(jnp.float32(level))) for level in (0.0, 0.25))
    assert plain[-10:].mean() > 100 * plain[:10].mean()
    assert told[-10:].mean() < 2 * told[20:30].mean()


def test_at_level_0_nothing_is_told():
    process, call = rectified_flow(), Call.at(jnp.array([[0.0, 0.5]]))
    x = jax.random.normal(KEY, (1, 2, 1, 1, 3))
    denoise = walk_denoiser(process, 0.0)
    found = Stabilised(0.0).around(denoise, process)(x, call, None)
    jax.tree.map(np.testing.assert_array_equal, found, denoise(x, call, None))


@pytest.mark.parametrize("process", [rectified_flow(), vp_cosine()], ids=["flow", "vp"])
def test_only_clean_frames_are_told_otherwise_and_they_keep_their_bits(process):
    """Frozen frames, those that wait for others, and those that are written to a cache."""
    seen = []

    def spy(x, call, carry):
        jax.debug.callback(lambda *given: seen.append(list(map(np.asarray, given))), x, *call[:2])
        return Denoised(0.5 * x, jnp.ones_like(x)), carry

    denoise = Stabilised(LEVEL).around(spy, process)
    levels = linspace_levels(3)
    waves = (lag_matrix(levels, 4, 2), cached(lag_matrix(levels, 4, 2)))
    for matrix in (freeze(synchronous(levels, 4), [0, 2]), *waves):
        seen.clear()
        x = jax.random.normal(KEY, (2, 4, 1, 1, 3))
        made = np.asarray(sample(denoise, Euler(), process, matrix, x, KEY).x)
        jax.effects_barrier()
        assert len(seen) >= 3
        frozen = np.asarray(matrix.index == matrix.index[:1]).all(0)
        np.testing.assert_array_equal(made[:, frozen], x[:, frozen])
        told = [np.abs(t - LEVEL) < 1e-6 for _, t, _ in seen]
        assert any(clean.any() for clean in told)
        for clean, (shown, t, t_next) in zip(told, seen, strict=True):
            assert (t[~clean] > LEVEL).all() and (t_next[clean] == t[clean]).all()
            finished = np.isclose(
                shown, process.alpha(jnp.float32(LEVEL)) * made[:, : t.shape[1]]
            ).all((2, 3, 4))
            if matrix.window == 4:  # it begins with the first frame
                np.testing.assert_array_equal(finished, clean)


def test_no_level_beyond_noise_is_told():
    for level in (-0.1, 1.0, 3):
        with pytest.raises(ConfigError, match=f"told the level {level}; .*; use about 0.02"):
            Stabilised(level)
