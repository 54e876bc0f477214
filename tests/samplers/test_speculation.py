"""Chunks on a guess: what the guess was right for is what would have been made."""

import functools

import numpy as np
import pytest

from jvdm.errors import ConfigError
from jvdm.samplers import accept, speculate, stream, stream_rows
from tests.samplers.problems import NoisyAverage
from tests.samplers.test_stream import LEVELS, starter, stepper

ROWS = stream_rows(LEVELS, 1, 1)
STEP = functools.partial(stepper(NoisyAverage()), rows=ROWS)


@pytest.mark.parametrize(
    ("told", "right"),
    [([0.5] * 4, 4), ([0.5, 0.5, 0.1, 0.5], 2), ([0.1, 0.5], 0), ([0.5], 1), ([0.5] * 6, 4)],
    ids=["all", "two", "none", "what is known so far", "no more than were made"],
)
def test_what_is_taken_is_what_would_have_been_made(told, right):
    begin = starter(NoisyAverage())(ROWS)
    state, kept = accept(speculate(STEP, begin, 0.5, 4), told)
    assert len(kept) == right == int(state.chunks)
    expected = [chunk for _, chunk in stream(STEP, begin, told)]
    rest = [chunk for _, chunk in stream(STEP, state, told[right:])]
    np.testing.assert_array_equal([*kept, *rest], expected)


def test_conditions_are_compared_leaf_by_leaf_and_by_their_structure():
    ahead = speculate(lambda s, told: STEP(s, told[0]), starter(NoisyAverage())(ROWS), (0.0, 1), 2)
    assert len(accept(ahead, [(0.0, 1), (0.0, 1)])[1]) == 2
    assert len(accept(ahead, [(0.0, 2)])[1]) == 0
    assert len(accept(ahead, [(0.0, 1, None), (0.0, 1)])[1]) == 0


def test_none_ahead_is_refused():
    with pytest.raises(ConfigError, match="0 chunks ahead"):
        speculate(STEP, starter(NoisyAverage())(ROWS), 0.0, 0)
