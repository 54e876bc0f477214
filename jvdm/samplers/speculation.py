"""Going ahead of what will be told: chunks on a guess, of which those that it was right for stay.

In a game an action is told with every chunk, and most often it is the one before it. So a stream
makes the next chunks as if it were, while nobody knows yet; whoever then learns what is really told
takes those that were made so, and goes on from there. A state is a value, caches of keys and values
and all: a chunk that is not taken leaves no trace, and one that is has the bits that it would have
had. (Next-Frame Diffusion makes the frames of a guess in one batch at equal levels, which other
frames come out of; ours follow each other, as they do without a guess.)

Reference: Next-Frame Diffusion, arXiv:2506.01380, speculative sampling.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jvdm.arrays import Array, PyTree
from jvdm.errors import ConfigError
from jvdm.samplers.stream import StreamState, stream


class Ahead(NamedTuple):
    """Chunks that were made on a guess.

    Attributes:
        guess: What the network was told.
        states: The state before the first chunk, and after each: `n + 1` of them are held.
        chunks: The `n` chunks.
    """

    guess: PyTree
    states: tuple[StreamState, ...]
    chunks: tuple[Array, ...]


def speculate(
    step: Callable[[StreamState, PyTree], tuple[StreamState, Array]],
    state: StreamState,
    guess: PyTree,
    count: int,
) -> Ahead:
    """Makes `count` chunks as if `guess` were told with each.

    Args:
        step: Compiled program around `stream_step`, as for `stream`; it must not donate.
        state: Where the stream is.
        guess: What may be told, such as the last action.
        count: Chunks to make, 1 or more.

    Raises:
        ConfigError: If there is none to make.
        NumericsError: If a chunk has a non-finite value.
    """
    if count < 1:
        raise ConfigError(f"{count} chunks ahead", "one or more are made", "use 4")
    states, chunks = zip(*stream(step, state, [guess] * count), strict=True)
    return Ahead(guess, (state, *states), chunks)


def accept(ahead: Ahead, told: Sequence[PyTree]) -> tuple[StreamState, tuple[Array, ...]]:
    """Takes the chunks that the guess was right for.

    Args:
        ahead: What was made.
        told: What is really told with the next chunks, as far as it is known.

    Returns:
        The state to go on from, and the first chunks: as many as `told` begins with guesses.
    """
    right = 0
    for now in told[: len(ahead.chunks)]:
        if not alike(now, ahead.guess):
            break
        right += 1
    return ahead.states[right], ahead.chunks[:right]


def alike(one: PyTree, two: PyTree) -> bool:
    """Whether two conditions are the same, bit by bit."""
    leaves, others = jax.tree.leaves(one), jax.tree.leaves(two)
    if jax.tree.structure(one) != jax.tree.structure(two):
        return False
    return all(a is b or np.array_equal(a, b) for a, b in zip(leaves, others, strict=True))
