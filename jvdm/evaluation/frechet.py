"""Frechet distance between sets of reader features.

These are features of the reader trained on this world, so the number is called "reader
Frechet distance": it says nothing about other networks' features or other videos. With
few clips the distance is dominated by the error of the covariance. So it is computed in
at most 32 directions, between halves of equal size, and shown beside the distance
between two halves of the true set.
"""

import numpy as np

from jvdm.arrays import Float

MAX_DIRECTIONS = 32
ALL_DIRECTIONS_FROM = 2000
"""Number of clips from which all features are used."""

Features = Float[np.ndarray, "_ D"]


def frechet_distance(one: Features, other: Features) -> float:
    """Squared Frechet distance of the Gaussians fitted to two sets.

    `|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))` (Dowson and Landau 1982); the trace of
    the root is the sum of the roots of the eigenvalues of `C1 C2`.
    """
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    gap = one.mean(0) - other.mean(0)
    first, second = np.atleast_2d(np.cov(one.T)), np.atleast_2d(np.cov(other.T))
    # Similar to C1 C2, but symmetric: real eigenvalues, none below zero but for rounding.
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    mixed = np.linalg.eigvalsh(root @ second @ root)
    shared = np.sqrt(np.maximum(mixed, 0.0)).sum()
    return float(gap @ gap + np.trace(first) + np.trace(second) - 2.0 * shared)


def directions(features: Features) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, "D M"]]:
    """Mean of a set, and its main directions scaled to unit variance."""
    count = features.shape[1] if len(features) >= ALL_DIRECTIONS_FROM else MAX_DIRECTIONS
    mean = features.mean(0)
    _, scale, axes = np.linalg.svd(features - mean, full_matrices=False)
    spread = scale / np.sqrt(max(len(features) - 1, 1))
    keep = np.flatnonzero(spread > 1e-3 * max(spread[0], 1e-12))[: min(count, len(features) // 4)]
    return mean, axes[keep].T / spread[keep]


def halves_distance(features: Features, truth: Features) -> float:
    """Distance of each half of a set to the other half of the true set, averaged.

    `halves_distance(truth, truth)` is the floor: what two halves of the same set have.
    """
    mean, axes = directions(np.asarray(truth, np.float64))
    sample = (np.asarray(features, np.float64) - mean) @ axes
    true = (np.asarray(truth, np.float64) - mean) @ axes
    ways = ((sample[::2], true[1::2]), (sample[1::2], true[::2]))
    return float(np.mean([frechet_distance(a, b) for a, b in ways]))
