import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jvdm.errors import ConfigError
from jvdm.samplers import (
    Blockwise,
    CleanPrefix,
    Drawn,
    Independent,
    LagRows,
    MaskedTasks,
    Mixture,
    NonDecreasing,
    Probabilistic,
    Shifted,
    StreamPartitions,
    Synchronous,
    TimestepSampler,
    lag_matrix,
    linspace_levels,
    report_rows,
    shift_levels,
    times,
)

FRAMES, CLIPS = 6, 4000
ONLY_LAST = (0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
ONE_WAVE = LagRows(num_steps=4, lags=(2,), blocks=(2,))
SAMPLERS = {
    "synchronous": Synchronous(),
    "independent": Independent(),
    "lag rows": LagRows(),
    "prefix": CleanPrefix(),
    "prefix of independent": CleanPrefix(Independent(), first_only=0.3, ends=0.5),
    "probabilistic": Probabilistic(),
    "non-decreasing": NonDecreasing(),
    "partitions": StreamPartitions(),
    "blockwise": Blockwise(),
    "tasks": MaskedTasks(),
    "uniform": Drawn(),
    "mode": Drawn("mode", 0.8),
    "cosine": Drawn("cosmap", per_frame=True),
    "shifted": Shifted(CleanPrefix(), 4.0),
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
    # Up to the last bit: a product and a sum may be rounded once or twice.
    np.testing.assert_allclose(small, large[:5], rtol=0, atol=2**-23)
    assert len(np.unique(large, axis=0)) > 30
    assert not np.array_equal(small, many(SAMPLERS[name], 5, seed=1)[0])


LAWS = {
    "uniform": (Drawn(), lambda t: t),
    "mode": (Drawn("mode", 0.8), None),
    "rare in the middle": (Drawn("mode", -0.9), None),
    "cosmap": (Drawn("cosmap"), lambda t: 2 / np.pi * np.arctan2(t, 1 - t)),
    "shifted": (Shifted(Drawn(), 3.0), lambda t: t / (3 - 2 * t)),
}


@pytest.mark.parametrize("name", LAWS)
def test_levels_have_the_law_of_their_name(name):
    sampler, share_below = LAWS[name]
    t, _ = many(sampler, 8000)
    np.testing.assert_array_equal(t, t[:, :1].repeat(FRAMES, axis=1))
    if share_below is None:  # the inverse has no closed form: from the draws of a grid
        u = np.linspace(1, 0, 20_001)
        ends = 1 - u - sampler.scale * (np.cos(np.pi * u / 2) ** 2 - 1 + u)
        assert (np.diff(ends) > 0).all() and ends[0] == 0 and ends[-1] == 1
        share_below = lambda t: np.interp(t, ends, 1 - u)  # noqa: E731
    assert plausible(stats.kstest(t[:, 0], share_below).pvalue)


def test_clips_of_a_batch_have_equal_shares_of_a_law():
    t, _ = many(Drawn(stratified=True), 50)
    np.testing.assert_array_equal(np.floor(t[:, 0] * 50), np.arange(50))
    own, _ = many(Drawn(per_frame=True), 50)
    assert len(np.unique(own)) == own.size


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Drawn("mode", 2.0), "a mode of scale 2"),
        (lambda: Drawn(per_frame=True, stratified=True), "equal shares"),
        (lambda: Shifted(Drawn(), 0.0), "shifted by 0"),
    ],
)
def test_laws_that_are_none_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


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


def test_with_a_probability_frames_have_levels_of_their_own():
    t, _ = many(Probabilistic(0.3))
    own = np.ptp(t, axis=1) > 0
    # Four standard errors of a share of 4000 clips.
    assert abs(own.mean() - 0.3) < 4 * (0.3 * 0.7 / CLIPS) ** 0.5
    assert plausible(stats.kstest(t[~own, 0], "uniform").pvalue)
    assert plausible(stats.kstest(t[own].ravel(), "uniform").pvalue)
    alike = [
        np.ptp(many(Probabilistic(0.5, per_batch=True), 8, seed=n)[0], axis=1) for n in range(8)
    ]
    assert all((spread > 0).all() or (spread == 0).all() for spread in alike)
    assert 0 < sum((spread > 0).all() for spread in alike) < 8


def completions(frames, steps):
    """Draws non-decreasing steps with the tables of AR-Diffusion: counts of ways on and back."""
    rng, found = np.random.default_rng(0), np.zeros((CLIPS, frames), int)
    for row in found:
        chosen = rng.integers(frames)
        row[chosen] = rng.integers(steps)
        for f in range(chosen - 1, -1, -1):
            ways = np.array([math.comb(t + f, f) for t in range(row[f + 1] + 1)], float)
            row[f] = rng.choice(len(ways), p=ways / ways.sum())
        for f in range(chosen + 1, frames):
            rest = frames - 1 - f
            ways = np.array(
                [math.comb(steps - 1 - t + rest, rest) for t in range(row[f - 1], steps)], float
            )
            row[f] = row[f - 1] + rng.choice(len(ways), p=ways / ways.sum())
    return (found + 0.5) / steps


def test_non_decreasing_rows_have_the_law_of_the_published_tables():
    t, _ = many(NonDecreasing())
    assert (np.diff(t, axis=1) >= 0).all()
    table = completions(FRAMES, 200)
    for f in range(FRAMES):
        assert plausible(stats.ks_2samp(t[:, f], table[:, f])[1])
    gap, expected = (np.diff(rows, axis=1).max(axis=1) for rows in (t, table))
    np.testing.assert_allclose(
        np.quantile(gap, [0.1, 0.5, 0.9]), np.quantile(expected, [0.1, 0.5, 0.9]), atol=0.03
    )


def test_chunks_of_a_buffer_are_in_their_segments():
    t, _ = many(StreamPartitions((2,)))
    np.testing.assert_array_equal(t[:, ::2], t[:, 1::2])
    segment = t[:, ::2] * 3 - np.arange(3)
    assert (segment >= -1e-6).all() and (segment <= 1 + 1e-6).all()
    for one in segment.T:
        assert plausible(stats.kstest(one, "uniform").pvalue)
    assert abs(np.corrcoef(segment[:, 0], segment[:, 1]).min()) < 4 / CLIPS**0.5
    whole, _ = many(StreamPartitions((16,)))
    assert (np.ptp(whole, axis=1) == 0).all()


def test_blocks_share_a_level():
    t, _ = many(Blockwise(Independent(), 4), 16)
    assert (np.ptp(t[:, :4], axis=1) == 0).all() and (np.ptp(t[:, 4:], axis=1) == 0).all()
    assert (t[:, 0] != t[:, 4]).all()
    inner, _ = many(Independent(), 16)
    np.testing.assert_array_equal(t[:, [0, 4]], inner[:, [0, 4]])


@pytest.mark.parametrize(
    "task, given",
    [(0, "111000"), (1, "000111"), (2, "100010"), (3, "000000")],
    ids=["prediction", "backwards", "interpolation", "nothing"],
)
def test_tasks_give_their_frames(task, given):
    weights = tuple(float(i == task) for i in range(6))
    t, mask = many(MaskedTasks(weights=weights), 32)
    clean = np.array([mark == "1" for mark in given])
    np.testing.assert_array_equal(t == 0, np.broadcast_to(clean, t.shape))
    np.testing.assert_array_equal(mask == 0, np.broadcast_to(clean, t.shape))


def test_tasks_of_chance_give_one_frame_or_a_share_and_leave_some():
    one, _ = many(MaskedTasks(weights=(0.0, 0.0, 0.0, 0.0, 1.0, 0.0)))
    assert ((one == 0).sum(axis=1) == 1).all()
    assert plausible(stats.chisquare((one == 0).sum(axis=0))[1])
    some, _ = many(MaskedTasks(weights=ONLY_LAST, share=0.2))
    assert abs((some == 0).mean() - 0.2) < 4 * (0.16 / some.size) ** 0.5
    most, mask = many(MaskedTasks(weights=ONLY_LAST, share=0.9))
    assert (mask.sum(axis=1) > 0).all() and (most > 0).any(axis=1).all()
    assert many(MaskedTasks(), 8, frames=1)[1].all()


def test_a_report_counts_the_levels_of_frames_and_neighbours():
    report = report_rows(StreamPartitions((3,)), jax.random.key(0), FRAMES, 1000, bins=4)
    np.testing.assert_allclose(report.levels.sum(axis=1), 1.0)
    np.testing.assert_allclose(report.neighbours.sum(), 1.0)
    assert (report.levels[:3, 2:] == 0).all() and (report.levels[3:, :2] == 0).all()
    inside = report.neighbours[[0, 1, 2, 3], [0, 1, 2, 3]].sum()
    np.testing.assert_allclose(inside, 4 / 5)  # of five pairs one is between the chunks
    assert (report.trained == 1).all()
    prefix = report_rows(CleanPrefix(first_only=1.0, ends=0.0), jax.random.key(0), FRAMES)
    np.testing.assert_array_equal(prefix.trained, [0, 1, 1, 1, 1, 1])
    assert prefix.levels[0, 0] == 1
