"""The measurement of chunks: what it says of times that are known, and of a stream."""

import numpy as np
import pytest

from tests.systems.chunk_times import line, row_of


def test_a_slope_is_found_within_its_error():
    random, count = np.random.default_rng(0), 990
    found = np.array([line(10 + random.normal(size=count)) for _ in range(300)])
    assert abs(found[:, 0].mean() - 10) < 0.01 and abs(found[:, 1].mean()) < 0.02
    np.testing.assert_allclose(found[:, 1].std(), found[:, 2].mean(), rtol=0.1)
    _, slope, error = line(10 + 2e-3 * np.arange(count) + random.normal(size=count))
    assert abs(slope - 2) < 3 * error < 1


@pytest.mark.filterwarnings("ignore:.*frames are more than")
def test_a_stream_carries_as_much_after_a_hundred_chunks():
    said = row_of("nano", "self_forcing", 100)
    assert said.startswith("self_forcing") and said.endswith("397 frames")
    assert said.count("the same") == 2 and "then" not in said
