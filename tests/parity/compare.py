"""How outputs of two libraries are compared: both in float32, on the CPU."""

import numpy as np

MODULE_ERROR = 1e-5  # largest difference over the largest value; float32 has 24 bits


def assert_equal(actual, expected, error: float = MODULE_ERROR) -> None:
    """Fails if the largest difference exceeds `error` times the scale of `expected`."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    difference = np.max(np.abs(actual - expected)) / np.max(np.abs(expected))
    assert difference <= error, f"relative difference {difference:.2e}"
