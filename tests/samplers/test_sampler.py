import dataclasses
import functools
from typing import NamedTuple

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import NumericsError
from jvdm.samplers import (
    Address,
    Call,
    ClassifierFree,
    Euler,
    Heun,
    advance,
    consecutive,
    cost,
    freeze,
    from_index,
    guided,
    initial_noise,
    lag_matrix,
    linspace_levels,
    pad_rows,
    raise_non_finite,
    rectified_flow,
    run_rows,
    sample,
    shift_levels,
    start,
    synchronous,
    times,
    validate,
    vp_cosine,
    windowed,
)
from jvdm.samplers.process import expand
from jvdm.samplers.solvers import Stepped
from tests.samplers.problems import NoisyAverage, mixture_denoiser, noise_like

FLOW, COSINE = rectified_flow(), vp_cosine()
SOLVERS = (Euler(), Heun(), NoisyAverage())
STEPS, FRAMES, ROWS = 4, 5, 20  # ROWS is enough for autoregression
LEVELS = shift_levels(linspace_levels(STEPS), 3.0)
NOISE = noise_like((2, FRAMES, 8))
KEPT, OTHERS = np.array([1, 4]), np.array([0, 2, 3])
KEY = jax.random.key(7)

each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=str)
# The solvers on the flow, and the one that is exposed to the singular end of the cosine.
each_case = pytest.mark.parametrize(
    "solver, process",
    [*((solver, FLOW) for solver in SOLVERS), (Heun(), COSINE)],
    ids=["euler", "heun", "noisy", "heun on cosine"],
)


@functools.cache
def runner(solver, process=FLOW):
    """One jitted run per solver; compiled once per shape of matrix."""
    denoise = mixture_denoiser(process)
    return jax.jit(functools.partial(sample, denoise, solver, process))


@functools.cache
def failing_runner(solver, process):
    """Like `runner`, with a network that fails on the frames `KEPT` and on clean ones."""
    kept = jnp.isin(jnp.arange(FRAMES), KEPT)[None]
    denoise = poisoned(mixture_denoiser(process), lambda t: kept | (t == 0))
    return jax.jit(functools.partial(sample, denoise, solver, process))


def run(solver, matrix, x=NOISE, process=FLOW, address=None):
    address = address or consecutive(*x.shape[:2])
    return runner(solver, process)(matrix, x, KEY, address=address)


def wave(lag, block=1):
    return pad_rows(lag_matrix(LEVELS, FRAMES, lag, block), ROWS)


def poisoned(denoise, where):
    """A network whose output is NaN on the frames `where(t)`."""

    def network(x, call, carry):
        denoised, carry = denoise(x, call, carry)
        bad = expand(where(call.t), x)
        return jax.tree.map(lambda value: jnp.where(bad, jnp.nan, value), denoised), carry

    return network


# What the frozen column says, and what the network makes of it.


@each_case
@pytest.mark.parametrize("level", [0, 2, STEPS], ids=["noise", "between", "clean"])
def test_frozen_frames_keep_their_bits_even_where_the_network_fails(solver, process, level):
    matrix = freeze(wave(1), KEPT.tolist(), level)
    x = NOISE.at[0, 1, :3].set(jnp.array([-0.0, 1e-41, 3e38]))  # fragile bits
    state = failing_runner(solver, process)(matrix, x, KEY)
    bits, bits_before = (np.asarray(v)[:, KEPT].view(np.int32) for v in (state.x, x))
    np.testing.assert_array_equal(bits, bits_before)
    assert np.isfinite(np.asarray(state.x)[:, OTHERS]).all()
    assert not np.isclose(np.asarray(state.x), x)[:, OTHERS].all(axis=-1).any()
    np.testing.assert_array_equal(state.updates[:, KEPT], 0)
    np.testing.assert_array_equal(state.updates[:, OTHERS], STEPS)
    raise_non_finite(state)


@each_case
def test_nothing_is_asked_of_the_network_about_clean_frames(solver, process):
    """A network is not trained on the velocity of clean frames: they are context."""
    state = failing_runner(solver, process)(freeze(wave(1), KEPT.tolist()), NOISE, KEY)
    expected = run(solver, wave(1), process=process)
    np.testing.assert_array_equal(state.x[:, OTHERS], expected.x[:, OTHERS])


@pytest.mark.parametrize("solver", SOLVERS[:2], ids=str)
def test_the_network_is_shown_the_true_frames_and_levels(solver):
    matrix = freeze(lag_matrix(LEVELS, FRAMES, lag=2), (0,), level=3)
    expected = times(matrix)

    def network(x, call, seen):
        t, row = call.t, call.row.index
        shown = (t[0, 0] == expected[0, 0]) & (x[:, 0] == NOISE[:, 0]).all()
        rows = (t[:, None] == expected[None]).all(axis=(0, 2))
        to_come = (call.t_next == expected[row + 1][None]).all()
        seen = seen & shown & rows.any() & to_come & rows[jnp.array([row, row + 1])].any()
        return mixture_denoiser(FLOW)(x, call, None)[0], seen

    state = sample(network, solver, FLOW, matrix, NOISE, KEY, carry=jnp.array(True))
    assert state.carry


# A column depends on its own levels alone.


@each_case
@hypothesis.settings(max_examples=15)
@hypothesis.given(data=st.data())
def test_columns_do_not_depend_on_each_other(solver, process, data):
    """Any order in which the frames take their steps gives the bits of the synchronous run."""
    step_rows = st.sets(st.integers(0, ROWS - 1), min_size=STEPS, max_size=STEPS)
    moves = np.zeros((ROWS + 1, FRAMES), np.int32)
    for frame in range(FRAMES):
        moves[[row + 1 for row in data.draw(step_rows)], frame] = 1
    matrix = validate(from_index(LEVELS, np.cumsum(moves, axis=0)))
    chex.assert_trees_all_equal(
        run(solver, matrix, process=process).x, run(solver, wave(0), process=process).x
    )


@each_solver
@pytest.mark.parametrize("lag, block", [(1, 1), (3, 1), (4, 1), (2, 2), (4, 3)])
def test_waves_and_autoregression_give_the_bits_of_the_synchronous_run(solver, lag, block):
    chex.assert_trees_all_equal(run(solver, wave(lag, block)).x, run(solver, wave(0)).x)


class ScalarLoop(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_constant_rows_are_a_plain_loop_over_scalar_levels(self):
        denoise = mixture_denoiser(FLOW)

        @jax.jit
        def by_hand(x, t, t_next):
            denoised, _ = denoise(x, Call.at(jnp.full(x.shape[:2], t)), None)
            return x + (t_next - t) * (denoised.eps - denoised.x0)

        x = NOISE
        for t, t_next in zip(LEVELS[:-1], LEVELS[1:], strict=True):
            x = by_hand(x, t, t_next)
        ours = self.variant(functools.partial(sample, denoise, Euler(), FLOW))
        got = ours(synchronous(LEVELS, FRAMES), NOISE, KEY).x
        np.testing.assert_array_equal(got, x)


# Rows: padding, splitting, windows.


@each_solver
def test_padding_changes_no_bit(solver):
    matrix = lag_matrix(LEVELS, FRAMES, lag=1)
    assert matrix.num_rows < wave(1).num_rows
    chex.assert_trees_all_equal(run(solver, matrix).x, run(solver, wave(1)).x)


@each_solver
def test_a_run_in_pieces_is_the_run(solver):
    matrix = pad_rows(lag_matrix(LEVELS, FRAMES, lag=2), ROWS)
    chex.clear_trace_counter()  # of this function with the other solvers

    @functools.partial(jax.jit, donate_argnums=0)
    @chex.assert_max_traces(1)
    def part(state, row):
        return advance(mixture_denoiser(FLOW), solver, FLOW, matrix, state, row, 6)

    state = start(solver, jnp.array(NOISE), KEY)
    for row in range(0, ROWS, 6):  # the last piece overruns the end
        state = part(state, row)
    whole = run(solver, matrix)
    chex.assert_trees_all_equal(state._replace(key=None), whole._replace(key=None))


def test_rows_past_the_end_do_nothing():
    """Also where the last row moves frames and writes them to a cache."""
    matrix = synchronous(LEVELS, FRAMES)
    matrix = dataclasses.replace(matrix, write=matrix.write.at[-1].set(True))

    def network(x, call, calls):
        return mixture_denoiser(FLOW)(x, call, None)[0], calls + 1

    end = sample(network, Euler(), FLOW, matrix, NOISE, KEY, carry=jnp.array(0))
    later = advance(network, Euler(), FLOW, matrix, end, STEPS, 3)
    chex.assert_trees_all_equal(end._replace(key=None), later._replace(key=None))
    assert later.carry == STEPS


def test_rows_from_the_host_are_the_run():
    matrix = wave(2)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, row):
        return advance(mixture_denoiser(FLOW), Heun(), FLOW, matrix, state, row, 1)

    states = run_rows(step, start(Heun(), jnp.array(NOISE), KEY), matrix.num_rows)
    seen = [(np.array(state.updates[0]), np.array(state.x)) for state in states]
    np.testing.assert_array_equal([updates for updates, _ in seen], matrix.index[1:])
    np.testing.assert_array_equal(seen[-1][1], run(Heun(), matrix).x)


def test_rows_from_the_host_stop_at_the_first_bad_value():
    matrix = synchronous(LEVELS, FRAMES)
    denoise = poisoned(mixture_denoiser(FLOW), lambda t: t == LEVELS[2])
    step = jax.jit(lambda state, row: advance(denoise, Euler(), FLOW, matrix, state, row, 1))
    states = run_rows(step, start(Euler(), NOISE, KEY), STEPS)
    assert len([next(states) for _ in range(2)]) == 2
    with pytest.raises(NumericsError, match="step 2"):
        next(states)


@each_solver
@pytest.mark.parametrize("lag, context", [(2, 0), (4, 1)])
def test_windows_change_no_bit(solver, lag, context):
    matrix = validate(windowed(wave(lag), context))
    assert matrix.window < FRAMES
    got, expected = run(solver, matrix), run(solver, wave(lag))
    chex.assert_trees_all_equal(got.x, expected.x)
    chex.assert_trees_all_equal(got.updates, expected.updates)


def test_windows_are_what_the_network_sees():
    matrix = windowed(lag_matrix(LEVELS, FRAMES, lag=4), context=1)

    def network(x, call, shape):
        return mixture_denoiser(FLOW)(x, call, None)[0], jnp.array(x.shape)

    state = sample(network, Euler(), FLOW, matrix, NOISE, KEY, carry=jnp.zeros(3, jnp.int32))
    np.testing.assert_array_equal(state.carry, [2, 2, 8])


# Batch and noise addresses.


@pytest.mark.parametrize("solver", [Heun(), NoisyAverage()], ids=str)
def test_samples_do_not_depend_on_the_batch(solver):
    frames = jnp.arange(FRAMES)
    x = noise_like((4, FRAMES, 8))
    everything = run(solver, wave(1), x).x
    for chosen in ([2, 0, 3, 1], [3, 1]):
        address = Address(jnp.array(chosen), frames)
        part = run(solver, wave(1), x[jnp.array(chosen)], address=address).x
        np.testing.assert_array_equal(part, everything[jnp.array(chosen)])


def test_fresh_noise_follows_the_absolute_frame():
    everything = run(NoisyAverage(), wave(1)).x
    matrix = lag_matrix(LEVELS, 2, lag=3)
    address = Address(jnp.arange(2), jnp.array([3, 4]))
    part = run(NoisyAverage(), matrix, NOISE[:, 3:], address=address).x
    chex.assert_trees_all_equal(part, everything[:, 3:])
    elsewhere = run(NoisyAverage(), matrix, NOISE[:, 3:]).x
    assert not jnp.allclose(elsewhere, part)


class DrawTwice(NoisyAverage):
    """A solver that draws twice in a step: it leaves the second draw, and keeps the first."""

    def step(self, x, state, context):
        first, second = context.noise(0), context.noise(1)
        return Stepped(second, first, context.carry)


def test_the_draws_of_one_step_and_of_two_are_independent():
    matrix = synchronous(linspace_levels(2), 1)
    x = noise_like((1, 1, 4000))
    draws = [x]
    state = start(DrawTwice(), x, KEY)
    for row in range(2):
        state = advance(mixture_denoiser(FLOW), DrawTwice(), FLOW, matrix, state, row, 1)
        draws += [state.solver, state.x]
    correlations = np.corrcoef(np.concatenate(draws).reshape(5, -1))
    assert np.abs(correlations - np.eye(5)).max() < 5 / 4000**0.5


class Count(NoisyAverage):
    """A solver whose latents are the steps that a frame has made, and those still to come."""

    def step(self, x, state, context):
        made, left = (
            expand(count.astype(x.dtype), x) for count in (context.updates, context.remaining)
        )
        return Stepped(x * 0 + made + left, state * 0 + left, context.carry)


@pytest.mark.parametrize("lag", [0, 1, 4])
def test_a_solver_is_told_how_many_steps_are_still_to_come(lag):
    state = sample(mixture_denoiser(FLOW), Count(), FLOW, freeze(wave(lag), (1,)), NOISE, KEY)
    moved = jnp.array([0, 2, 3, 4])
    assert (state.x[:, moved] == STEPS).all()  # whatever the row, what it leaves out and pads
    assert (state.solver[:, moved] == 1).all()  # the last step is the only one that remains


# What the denoiser carries.


class Log(NamedTuple):
    """What a network keeps of the rows that it is called with."""

    start: jax.Array
    write: jax.Array


def test_the_network_is_told_the_row_and_rows_that_only_write_are_called():
    matrix = pad_rows(windowed(lag_matrix(LEVELS, FRAMES, lag=4, block=2), context=1), 13)
    write = matrix.write.at[8, 2:4].set(True).at[12, 4].set(True)
    matrix = validate(dataclasses.replace(matrix, write=write))

    def network(x, call, carry):
        log, row = carry["log"], call.row
        starts, writes = log.start.at[row.index], log.write.at[row.index]
        log = Log(starts.set(row.start), writes.set(row.write))
        denoised, _ = mixture_denoiser(FLOW)(x, call, None)
        return denoised, {"calls": carry["calls"] + 1, "log": log}

    log = Log(jnp.full(13, -1), jnp.zeros((13, matrix.window), bool))
    carry = {"calls": jnp.array(0), "log": log}
    state = sample(network, Euler(), FLOW, matrix, NOISE, KEY, carry=carry)
    np.testing.assert_array_equal(state.carry["log"].start, matrix.start)
    expected = np.zeros((13, 3), bool)
    expected[8, 0:2] = expected[12, 2] = True  # windows start at frame 2
    np.testing.assert_array_equal(state.carry["log"].write, expected)
    assert state.carry["calls"] == cost(matrix).calls == 13
    chex.assert_trees_all_equal(state.x, run(Euler(), matrix).x)


MATRICES = {
    "synchronous": synchronous(LEVELS, FRAMES),
    "wave": lag_matrix(LEVELS, FRAMES, lag=2),
    "image": pad_rows(freeze(lag_matrix(LEVELS, FRAMES, lag=1), (0,)), 11),
    "autoregressive": windowed(lag_matrix(LEVELS, FRAMES, lag=4, block=2), context=1),
}


@pytest.mark.parametrize("name", MATRICES)
def test_cost_is_what_a_counting_network_counts(name):
    matrix = MATRICES[name]

    def network(x, call, tally):
        return mixture_denoiser(FLOW)(x, call, None)[0], tally + jnp.array([1, x.shape[1]])

    part = jax.jit(functools.partial(advance, network, Euler(), FLOW), static_argnums=3)
    state = start(Euler(), NOISE, KEY, carry=jnp.zeros(2, jnp.int32))
    first = None
    for row in range(matrix.num_rows):
        state = part(matrix, state, row, 1)
        if first is None and (state.updates == STEPS).any():
            first = state.carry[0]
    assert cost(matrix) == (*state.carry, first)


@pytest.mark.parametrize(
    "solver, calls",
    [(Euler(), STEPS), (Heun(), 2 * STEPS - 1), (Heun(correct_last=True), 2 * STEPS)],
    ids=str,
)
def test_number_of_network_evaluations(solver, calls):
    def network(x, call, tally):
        return mixture_denoiser(FLOW)(x, call, None)[0], tally + 1

    state = sample(network, solver, FLOW, wave(0), NOISE, KEY, carry=jnp.array(0))
    assert state.carry == calls <= solver.evaluations * STEPS


# One program, one number type, no word to the host.


def test_matrices_scales_and_seeds_of_equal_shape_share_one_program():
    mixture = mixture_denoiser(FLOW)

    @jax.jit
    @chex.assert_max_traces(1)
    def generate(matrix, scale, seed):
        key = jax.random.key(seed)
        x = initial_noise(key, jnp.arange(2), FRAMES, (8,))
        denoise = guided(ClassifierFree(scale), lambda names: mixture, FLOW)
        return sample(denoise, Heun(), FLOW, matrix, x, key).x

    results = [
        generate(matrix, scale, seed)
        for matrix, scale, seed in [
            (wave(0), 1.0, 0),
            (wave(3), 5.0, 1),
            (freeze(wave(2), (0, -1)), 2.0, 2),
        ]
    ]
    assert len({float(x.sum()) for x in results}) == 3


@each_solver
def test_no_host_callback(solver):
    for process in (FLOW, COSINE):
        program = functools.partial(sample, mixture_denoiser(process), solver, process)
        text = str(jax.make_jaxpr(program)(windowed(wave(4)), NOISE, KEY))
        assert "scan" in text and "cond" in text
        for word in ("callback", "infeed", "outfeed", "debug", "device_put"):
            assert word not in text


def test_a_donated_state_is_used_again():
    matrix, x = wave(1), jnp.zeros((2, FRAMES, 1024))
    part = jax.jit(
        functools.partial(advance, mixture_denoiser(FLOW), Euler(), FLOW, matrix),
        static_argnums=2,
        donate_argnums=0,
    )
    memory = part.lower(start(Euler(), x, KEY), 0, 4).compile().memory_analysis()
    assert memory is not None and memory.alias_size_in_bytes >= x.nbytes


def test_the_state_is_float32():
    state = run(NoisyAverage(), wave(1), NOISE.astype(jnp.bfloat16))
    assert state.x.dtype == state.solver.dtype == jnp.float32


# Values that are not finite.


def test_the_first_non_finite_step_is_named():
    matrix = lag_matrix(LEVELS, FRAMES, lag=2)
    denoise = poisoned(
        mixture_denoiser(FLOW),
        lambda t: (
            (t == LEVELS[2]) & (jnp.arange(FRAMES) == 3)[None] & (jnp.arange(2) == 1)[:, None]
        ),
    )
    state = jax.jit(functools.partial(sample, denoise, Euler(), FLOW))(matrix, NOISE, KEY)
    expected = np.full((2, FRAMES), -1)
    expected[1, 3] = 2 + 2 * 3  # level 2 of the frame that waits 6 rows
    np.testing.assert_array_equal(state.bad_row, expected)
    with pytest.raises(NumericsError, match="step 8 .*latent frame 3 of sample 1"):
        raise_non_finite(state)
