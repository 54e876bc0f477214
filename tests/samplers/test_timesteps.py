import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jvdm.errors import ConfigError
from jvdm.samplers import (
    CleanPrefix,
    Independent,
    LagRows,
    Mixture,
    Synchronous,
    TimestepSampler,
    lag_matrix,
    linspace_levels,
    shift_levels,
    times,
)

FRAMES, CLIPS = 6, 4000
ONE_WAVE = LagRows(num_steps=4, lags=(2,), blocks=(2,))
SAMPLERS = {
    "synchronous": Synchronous(),
    "independent": Independent(),
    "lag rows": LagRows(),
    "prefix": CleanPrefix(),
    "prefix of independent": CleanPrefix(Independent(), first_only=0.3, ends=0.5),
    "mixture": Mixture(
        (Synchronous(), Independent(), LagRows(), CleanPrefix()), (2.0, 1.0, 1.0, 1.0)
    ),
}
draw = jax.jit(
    lambda sampler, key, batch, frames: sampler(key, batch, frames), static_argnums=(0, 2, 3)
)


def many(sampler, clips=CLIPS, frames=FRAMES, seed=0):
    """Draws a batch as NumPy arrays in float64."""
    drawn = draw(sampler, jax.random.key(seed), clips, frames)
    return tuple(np.asarray(value, np.float64) for value in drawn)


def plausible(p_value):
    """The keys are fixed: a correct law passes for good, a wrong one does not."""
    return p_value > 1e-3


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_keeps_the_contract(name):
    sampler = SAMPLERS[name]
    assert isinstance(sampler, TimestepSampler)
    assert hash(sampler) == hash(type(sampler)(**vars(sampler)))
    drawn = draw(sampler, jax.random.key(3), 64, FRAMES)
    for value in drawn:
        assert value.shape == (64, FRAMES) and value.dtype == jnp.float32
    assert ((drawn.t >= 0) & (drawn.t <= 1)).all()
    assert jnp.isin(drawn.loss_mask, jnp.array([0.0, 1.0])).all()
    assert (drawn.loss_mask.sum(axis=1) > 0).all()
    np.testing.assert_array_equal(drawn.loss_mask == 0, drawn.t == 0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_clip_does_not_depend_on_the_batch_but_on_the_key(name):
    small, _ = many(SAMPLERS[name], 5)
    large, _ = many(SAMPLERS[name], 64)
    np.testing.assert_array_equal(small, large[:5])
    assert len(np.unique(large, axis=0)) > 30
    assert not np.array_equal(small, many(SAMPLERS[name], 5, seed=1)[0])


def test_synchronous_is_logit_normal_and_equal_in_a_clip():
    t, _ = many(Synchronous())
    assert np.all(t == t[:, :1])
    assert plausible(stats.kstest(_logit(t[:, 0]), stats.norm(0.3, 1.2).cdf).pvalue)


def test_independent_is_logit_normal_in_every_frame():
    t, _ = many(Independent(mean=-0.2, std=0.9))
    assert plausible(stats.kstest(_logit(t).ravel(), stats.norm(-0.2, 0.9).cdf).pvalue)
    correlations = np.atleast_2d(np.corrcoef(t.T)) - np.eye(FRAMES)
    assert abs(correlations).max() < 5 / CLIPS**0.5
    assert Independent() == Independent(0.3, 1.5)


def _logit(t):
    return np.log(t) - np.log1p(-t)


def matrix_rows(sampler, lag, block):
    levels = shift_levels(linspace_levels(sampler.num_steps), sampler.shift)
    return np.asarray(times(lag_matrix(levels, FRAMES, lag, block)), np.float64)


def test_without_jitter_lag_rows_are_rows_of_the_matrices():
    sampler = LagRows(num_steps=3, lags=(0, 1, 3), blocks=(1, 4), jitter=0.0)
    t = many(sampler)[0]
    possible = {
        row.tobytes()
        for lag in sampler.lags
        for block in sampler.blocks
        for row in matrix_rows(sampler, lag, block)[:-1]
    }
    assert {row.tobytes() for row in t} == possible


def test_all_rows_of_a_wave_are_equally_likely():
    rows = matrix_rows(ONE_WAVE, 2, 2)[:-1]
    t, mask = many(LagRows(**{**vars(ONE_WAVE), "jitter": 0.0}))
    which = (t[:, None] == rows).all(axis=2).argmax(axis=1)
    counts = np.bincount(which, minlength=len(rows))
    assert plausible(stats.chisquare(counts).pvalue)
    np.testing.assert_array_equal(mask, rows[which] > 0)


def test_jitter_stays_between_a_row_and_the_next():
    rows = matrix_rows(ONE_WAVE, 2, 2)
    t, _ = many(ONE_WAVE)
    inside = (t[:, None] <= rows[:-1]) & (t[:, None] >= rows[1:])
    assert np.all(np.any(np.all(inside, axis=2), axis=1))
    moving = t[(t > 0) & (t < 1)]
    assert len(np.unique(moving)) > 0.99 * len(moving)


def test_jitter_is_uniform():
    t, _ = many(LagRows(num_steps=1, lags=(0,), blocks=(1,), shift=1.0))
    assert plausible(stats.kstest(t.ravel(), "uniform").pvalue)
    t, _ = many(LagRows(num_steps=1, lags=(0,), blocks=(1,), shift=1.0, jitter=0.5))
    assert plausible(stats.kstest(t.ravel(), "uniform", (0.5, 0.5)).pvalue)


def test_clean_frames_are_a_prefix_or_the_ends():
    sampler = CleanPrefix(Independent(), first_only=0.5, ends=0.2)
    t = many(sampler)[0]
    clean = t == 0
    at_ends = clean[:, -1]
    expected = np.zeros(FRAMES, bool)
    expected[[0, -1]] = True
    assert (clean[at_ends] == expected).all()
    assert plausible(stats.binomtest(int(at_ends.sum()), CLIPS, 0.2).pvalue)
    prefix = clean[~at_ends]
    assert (np.diff(prefix.astype(int), axis=1) <= 0).all()
    shares = np.full(FRAMES - 1, 0.5 / (FRAMES - 1))
    shares[0] += 0.5
    counts = np.bincount(prefix.sum(axis=1), minlength=FRAMES)[1:]
    assert plausible(stats.chisquare(counts, shares * len(prefix)).pvalue)
    assert plausible(stats.kstest(_logit(t[~clean]), stats.norm(0.3, 1.5).cdf).pvalue)


@pytest.mark.parametrize("frames, clean", [(1, 0), (2, 1)])
def test_short_clips_keep_something_to_learn(frames, clean):
    t, mask = many(CleanPrefix(ends=1.0), 64, frames)
    np.testing.assert_array_equal((t == 0).sum(axis=1), clean)
    assert mask[:, -1].all()


def test_loss_masks_of_the_inner_sampler_are_kept():
    inner = LagRows(num_steps=2, lags=(2,), blocks=(1,))
    t, mask = many(CleanPrefix(inner, first_only=1.0, ends=0.0))
    assert (mask[:, 0] == 0).all() and (mask[:, 1] == 0).any()
    np.testing.assert_array_equal(mask == 0, t == 0)


def test_mixtures_choose_whole_clips_at_the_given_rates():
    constant = [Synchronous(mean=mean, std=0.0) for mean in (-2.0, 0.0, 2.0)]
    weights = (1.0, 3.0, 0.0)
    t, _ = many(Mixture(tuple(constant), weights))
    assert np.all(t == t[:, :1])
    counts = [int((abs(t[:, 0] - 1 / (1 + np.exp(-s.mean))) < 1e-5).sum()) for s in constant]
    assert counts[2] == 0 and sum(counts) == CLIPS
    assert plausible(stats.binomtest(counts[0], CLIPS, 0.25).pvalue)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, -1.0), (), (0.0, 0.0), (1.0, math.inf)])
def test_mixtures_need_a_weight_for_each_sampler(weights):
    with pytest.raises(ConfigError, match="mixture of 2 samplers .* one weight"):
        Mixture((Synchronous(), Independent()), weights)
    with pytest.raises(ConfigError, match="mixture of 0 samplers .* above 0"):
        Mixture((), ())
