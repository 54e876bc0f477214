import dataclasses
import functools
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ConfigError, NumericsError, ShapeError
from jvdm.samplers import (
    AutoregressiveMatrix,
    Denoised,
    Euler,
    WindowedMatrix,
    consecutive,
    initial_noise,
    lag_matrix,
    linspace_levels,
    rectified_flow,
    sample,
    times,
    vp_cosine,
)
from jvdm.samplers.stream import (
    stream,
    stream_cycle,
    stream_init,
    stream_of,
    stream_rows,
    stream_step,
    warm_start,
)
from tests.samplers.problems import NoisyAverage, mixture_denoiser

FLOW = rectified_flow()
LEVELS = linspace_levels(4)
KEY = jax.random.key(3)
SHAPE = (2, 6)


def neighbours(process, told=0.0):
    """A network that mixes the frames of its window and is told a number."""
    exact = mixture_denoiser(process)

    def denoise(x, call, carry):
        denoised, carry = exact(x, call, carry)
        x0 = denoised.x0 + 0.1 * (x.mean(1, keepdims=True) - x) + told
        return Denoised(x0, denoised.eps), carry

    return denoise


@functools.cache
def stepper(solver, process=FLOW) -> Any:
    """A compiled step; it is told a number and may be fed a video."""

    def step(state, told, rows, incoming=None):
        return stream_step(neighbours(process, told), solver, process, rows, state, incoming)

    return jax.jit(step)


@functools.cache
def starter(solver, process=FLOW):
    return jax.jit(lambda rows: stream_init(neighbours(process), solver, process, rows, SHAPE, KEY))


def collect(solver, rows, told, process=FLOW):
    step = functools.partial(stepper(solver, process), rows=rows)
    chunks = stream(step, starter(solver, process)(rows), told)
    return np.concatenate([np.asarray(chunk) for _, chunk in chunks], 1)


@pytest.mark.parametrize(
    "lag, block, context, process",
    [(1, 1, 0, FLOW), (2, 2, 2, vp_cosine()), (3, 1, 2, FLOW), (4, 2, 0, FLOW)],
    ids=["wave", "context", "lag 3", "autoregression"],
)
def test_a_stream_is_a_long_run_in_the_same_windows(lag, block, context, process):
    """With a stochastic solver that has a history, and a network that mixes frames."""
    rows, chunks, solver = stream_rows(LEVELS, lag, block, context), 4, NoisyAverage()
    frames = rows.buffer + (chunks - 1) * block
    matrix = lag_matrix(LEVELS, frames, lag, block)
    cycle = (np.arange(matrix.num_rows) - rows.ramp.num_rows) // lag
    first = block * np.clip(cycle, 0, chunks - 1)
    matrix = dataclasses.replace(matrix, start=jnp.asarray(first), window=rows.buffer)
    noise = initial_noise(KEY, jnp.arange(2), frames, SHAPE[1:])
    run = jax.jit(functools.partial(sample, neighbours(process), solver, process))
    x = float(process.sigma(LEVELS[0])) * noise
    expected = run(matrix, x, KEY, address=consecutive(2, frames)).x
    emitted = collect(solver, rows, [0.0] * chunks, process)
    assert emitted.shape[1] == chunks * block
    np.testing.assert_allclose(
        emitted, expected[:, context : context + chunks * block], rtol=1e-5, atol=2e-6
    )


@pytest.mark.parametrize("kept", [False, True])
def test_nothing_is_asked_before_rows_that_are_known_to_work(kept):
    """A GPU waits for the host where a program chooses between doing a row and leaving it out."""

    def chosen(levels):
        rows = stream_rows(levels, 2, 2, kept=kept)
        state = starter(Euler())(rows)
        made = jax.make_jaxpr(lambda state: stepper(Euler()).__wrapped__(state, 0.0, rows))(state)
        return rows.writes, str(made).count("cond[")

    assert chosen(LEVELS) == ((True, True, False, False) if kept else (), 0)
    assert chosen(jnp.array([1.0, 0.6, 0.6, 0.0])) == (None, 1)
    assert jax.eval_shape(lambda x: stream_rows(x, 2), LEVELS).writes is None


@hypothesis.given(
    st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2), st.integers(0, 30)
)
def test_as_many_frames_are_handed_out_as_the_rows_have_finished(block, steps, lag, before, rows):
    """After `rows` rows of cycles: a block for every `lag` of them, in the long run as well."""
    lag, context = min(lag, steps), before * block
    stream_of_rows = stream_rows(linspace_levels(steps), lag, block, context)
    frames = stream_of_rows.buffer + block * (rows // lag + 1)
    index = np.asarray(lag_matrix(linspace_levels(steps), frames, lag, block).index)
    finished = (index[stream_of_rows.ramp.num_rows + rows] == steps).sum()
    assert finished - context == block * (rows // lag)
    cycle = np.asarray(stream_of_rows.cycle.index)
    assert ((cycle[-1] == steps) & (cycle[0] < steps)).sum() == block


def test_a_stream_counts_what_it_has_handed_out():
    rows = stream_rows(LEVELS, 3, 2, context=2)
    step = functools.partial(stepper(Euler()), rows=rows)
    handed_out = 0
    for state, chunk in stream(step, starter(Euler())(rows), [0.0] * 5):
        handed_out += chunk.shape[1]
        assert int(state.chunks) * rows.block == handed_out == int(state.run.address.frames[0])
    assert handed_out == 10


def test_every_period_begins_as_the_last_one_ended_one_block_on():
    for block, steps, lag, context in [(1, 4, 1, 0), (2, 5, 2, 4), (3, 4, 4, 0), (1, 8, 3, 2)]:
        rows = stream_cycle(block, steps, lag, context)
        np.testing.assert_array_equal(rows[-1, block:], rows[0, :-block])
        assert (rows[0, -block:] == max(0, steps - lag * -(-steps // lag))).all()
        assert (rows[-1, context : context + block] == steps).all()
        assert rows.shape[0] == lag + 1


def test_two_hundred_chunks_are_one_program_and_a_state_of_one_size():
    rows, solver = stream_rows(LEVELS, 2, 2), NoisyAverage()
    step, state = stepper(solver), starter(solver)(rows)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    programs = step._cache_size()
    means = []
    for told in range(200):
        state, chunk = step(state, 0.001 * told, rows)
        means.append(float(jnp.abs(chunk).mean()))
    assert step._cache_size() <= programs + 1
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == shapes
    assert int(state.chunks) == 200
    assert int(state.run.address.frames[0]) == 400
    assert len(set(means)) == 200  # no noise is used twice


def test_going_back_to_an_old_state_replays_the_same_bits():
    rows = stream_rows(LEVELS, 1, 1)
    step, state = stepper(NoisyAverage()), starter(NoisyAverage())(rows)
    state, _ = step(state, 0.0, rows)
    once = [chunk for _, chunk in stream(functools.partial(step, rows=rows), state, [0.0] * 3)]
    again = [chunk for _, chunk in stream(functools.partial(step, rows=rows), state, [0.0] * 3)]
    np.testing.assert_array_equal(once, again)


def test_what_is_told_from_a_chunk_on_changes_that_chunk_and_none_before():
    rows = stream_rows(LEVELS, 2, 1)
    plain = collect(Euler(), rows, [0.0] * 5)
    programs = stepper(Euler())._cache_size()
    told = collect(Euler(), rows, [0.0, 0.0, 1.0, 1.0, 1.0])
    assert stepper(Euler())._cache_size() == programs
    np.testing.assert_array_equal(told[:, :2], plain[:, :2])
    assert (np.abs(told[:, 2:] - plain[:, 2:]).max(axis=(0, 2)) > 0.1).all()


def test_a_finished_clip_starts_a_stream_at_the_levels_of_its_first_row():
    rows = stream_rows(LEVELS, 2, 1, context=1)
    clip = 1e4 * jnp.ones((2, rows.buffer, 6))
    state = warm_start(Euler(), FLOW, rows, clip, KEY)
    t = times(rows.cycle)[0]
    np.testing.assert_allclose(state.run.x.mean((0, 2)), 1e4 * (1 - t), atol=3)
    np.testing.assert_array_equal(state.run.x[:, 0], clip[:, 0])
    with pytest.raises(ShapeError, match=f"the buffer of this stream has {rows.buffer}"):
        warm_start(Euler(), FLOW, rows, clip[:, 1:], KEY)


def test_a_video_that_is_fed_enters_at_the_first_level():
    rows = stream_rows(linspace_levels(4, 0.5), 2, 1)
    state = starter(Euler())(rows)
    state, _ = stepper(Euler())(state, 0.0, rows, 100 * jnp.ones((2, 1, 6)))
    noise = initial_noise(KEY, jnp.arange(2), 1, (6,), first_frame=rows.buffer)
    np.testing.assert_allclose(state.run.x[:, -1:], 50 + 0.5 * noise, rtol=1e-6)


def test_bad_numbers_are_refused():
    with pytest.raises(ConfigError, match="lag 5 and 4 steps"):
        stream_cycle(1, 4, 5)
    with pytest.raises(ConfigError, match="3 frames of context in a stream of blocks of 2"):
        stream_cycle(2, 4, 1, 3)
    for windowed in ({"window": 3}, {"context": 1}):  # no frame that was asked for is left out
        rule = WindowedMatrix(AutoregressiveMatrix(2), **windowed)
        with pytest.raises(ConfigError, match="1 frames of context in a stream of blocks of 2"):
            stream_of(rule, LEVELS, 9)


def test_a_chunk_that_is_not_finite_is_an_error_that_names_it():
    rows = stream_rows(LEVELS, 4, 1)
    with pytest.raises(NumericsError, match="chunk 1 of the stream"):
        collect(Euler(), rows, [0.0, np.nan])


def test_samples_have_their_own_noise():
    rows = stream_rows(LEVELS, 2, 1)
    denoise = neighbours(FLOW)
    init = functools.partial(stream_init, denoise, Euler(), FLOW, rows, SHAPE, KEY)
    both, second = init(), init(samples=jnp.array([1, 0]))
    np.testing.assert_array_equal(both.run.x[1], second.run.x[0])
