"""From numbers per clip to a mean with its uncertainty."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import betaincinv

from jvdm.arrays import Array, Bool, Float

RESAMPLES = 1000


class Measure(NamedTuple):
    """A number per clip (or per clip and object), and where it was measured."""

    value: Float[Array, "B ..."] | Bool[Array, "B ..."] | np.ndarray
    counted: Bool[Array, "B ..."] | np.ndarray


class Estimate(NamedTuple):
    """A mean over `count` values with a 95 % interval."""

    mean: float
    low: float
    high: float
    count: int


def estimate(value: np.ndarray, counted: np.ndarray, seed: int = 0) -> Estimate:
    """Mean over what is counted; NaN if nothing is.

    A share, which is the mean of bools, has a binomial interval over the clips in which
    something is counted; other numbers have that of resampled clips. So several objects of
    a clip tell no more than one.
    """
    clips = len(value)
    weight = np.asarray(counted, np.float64).reshape(clips, -1)
    numbers = np.where(weight > 0, np.asarray(value, np.float64).reshape(clips, -1), 0.0)
    totals, counts = (numbers * weight).sum(1), weight.sum(1)
    if counts.sum() == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    mean = totals.sum() / counts.sum()
    if np.asarray(value).dtype == bool:
        low, high = share_interval(mean, int(np.count_nonzero(counts)))
    else:
        picks = _picks(clips, seed)
        means = totals[picks].sum(1) / np.maximum(counts[picks].sum(1), 1e-9)
        low, high = np.quantile(means[counts[picks].sum(1) > 0], [0.025, 0.975])
    return Estimate(mean, float(low), float(high), int(counts.sum()))


def share_interval(share: float, clips: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share of independent clips.

    It covers the truth in 95 % of cases or more whatever the truth is, where that of
    resampling covers 52 % at .95 of 16 clips: Clopper and Pearson, Biometrika 26 (1934).
    """
    right = share * clips
    wrong = clips - right
    low = betaincinv(right, wrong + 1, 0.025) if right > 0 else 0.0
    high = betaincinv(right + 1, wrong, 0.975) if wrong > 0 else 1.0
    return float(low), float(high)


def ratio(top: np.ndarray, bottom: np.ndarray, seed: int = 0) -> Estimate:
    """Ratio of two means over the same clips."""
    picks = _picks(len(top), seed)
    ratios = top[picks].mean(1) / np.maximum(bottom[picks].mean(1), 1e-12)
    low, high = np.quantile(ratios, [0.025, 0.975])
    mean = float(top.mean() / max(bottom.mean(), 1e-12))
    return Estimate(mean, float(low), float(high), len(top))


def gather(parts: Sequence[Mapping[str, Measure]]) -> dict[str, Measure]:
    """Joins the measures of several batches on the host."""
    return {
        name: Measure(
            *(np.concatenate([np.asarray(part[name][i]) for part in parts]) for i in (0, 1))
        )
        for name in parts[0]
    }


def _picks(clips: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, clips, (RESAMPLES, clips))
