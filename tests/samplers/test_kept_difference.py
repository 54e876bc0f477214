"""Guidance that keeps its difference: when branches are asked, and what is made of it then."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvdm
from jvdm.samplers import (
    ClassifierFree,
    Denoised,
    Euler,
    Heun,
    KeptDifference,
    Solver,
    TwoScales,
    freeze,
    from_times,
    guided,
    guided_carry,
    lag_matrix,
    linspace_levels,
    rectified_flow,
    sample,
    stream_init,
    stream_rows,
    stream_step,
    synchronous,
    windowed,
)
from jvdm.samplers.kept_difference import low_frequencies
from jvdm.samplers.process import to_x0_eps
from tests.samplers.problems import noise_like

FLOW, KEY, SHAPE = rectified_flow(), jax.random.key(0), (2, 4, 10, 6, 2)
X = noise_like(SHAPE)
SHIFT = 0.3 * noise_like((1, 1, *SHAPE[2:]), 1)
PLAIN = ClassifierFree(3.0, execution="sequential")
EULER = Euler()
KEPT = KeptDifference(3.0, longest=2, above=2.0)
MATRIX = synchronous(linspace_levels(8), 4)


def network(differs):
    """Branches whose velocities differ by `differs(x)`; the carry counts what was asked."""

    def branch(names):
        def denoise(x, call, carry):
            velocity = jnp.sin(2 * x) + (differs(x) if names == ("prompt",) else 0.0)
            return Denoised(*to_x0_eps(FLOW, "velocity", velocity, x, call.t)), carry + 1

        return denoise

    return branch


CONSTANT, CHANGING = network(lambda x: SHIFT + 0 * x), network(lambda x: jnp.cos(x))


def run(rule, branch=CHANGING, matrix=MATRIX, solver: Solver = EULER, x=X):
    """Returns the result, and how often the branches were asked."""

    def made(rule, x):
        carry = guided_carry(rule, lambda names: jnp.int32(0), x.shape)
        denoise = guided(rule, branch, FLOW)
        return sample(denoise, solver, FLOW, matrix, x, KEY, carry=carry)

    state = jax.jit(made)(rule, x)
    counts = state.carry[1] if rule.remembers else state.carry
    return np.asarray(state.x), [int(count) for count in counts]


@pytest.mark.parametrize("solver", [Euler(), Heun()], ids=str)
@pytest.mark.parametrize("matrix", [MATRIX, lag_matrix(linspace_levels(4), 4, 1)], ids=["s", "l"])
def test_without_reuse_it_is_guidance_bit_by_bit(solver, matrix):
    rule = dataclasses.replace(KEPT, longest=0, low=1.2, high=1.1)
    (got, asked), (expected, all_asked) = (run(r, CHANGING, matrix, solver) for r in (rule, PLAIN))
    np.testing.assert_array_equal(got, expected)
    assert asked == all_asked and asked[0] == asked[1] > 1


def test_two_scales_are_those_of_guidance():
    cfg = TwoScales(3.0, 1.5, 0.5, execution="sequential")
    rule = KeptDifference(3.0, 1.5, 0.5, longest=0)
    np.testing.assert_array_equal(run(rule)[0], run(cfg)[0])
    assert np.abs(run(rule)[0] - run(PLAIN)[0]).max() > 0.1


@pytest.mark.parametrize(("longest", "rows"), [(1, 4), (2, 3), (3, 2), (7, 1), (100, 1)])
def test_a_row_that_reuses_does_not_evaluate_the_branch(longest, rows):
    rule = dataclasses.replace(KEPT, longest=longest)
    assert run(rule)[1] == [rows, 8]


def test_noisy_rows_ask_all_branches():
    assert run(dataclasses.replace(KEPT, longest=100, above=0.6))[1] == [4, 8]


@pytest.mark.parametrize("matrix", [MATRIX, lag_matrix(linspace_levels(4), 4, 1)], ids=["s", "l"])
def test_a_difference_that_is_constant_is_reused_exactly(matrix):
    got, asked = run(KEPT, CONSTANT, matrix)
    expected, plain = run(PLAIN, CONSTANT, matrix)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert asked[0] < plain[0]
    other = run(KEPT, CHANGING)[0]
    assert np.abs(other - run(PLAIN)[0]).max() > 1e-3


def test_what_is_reused_is_the_difference_of_the_last_row_that_computed():
    """Step by step by hand: every third row asks."""
    levels, x, kept = np.linspace(1, 0, 9, dtype=np.float32), X, X
    for k, (t, t_next) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        kept = jnp.cos(x) if k % 3 == 0 else kept
        x = x + (t_next - t) * (jnp.sin(2 * x) + jnp.cos(x) + 2.0 * kept)
    np.testing.assert_allclose(run(KEPT)[0], x, atol=2e-5)


def test_the_second_evaluation_of_a_step_reuses_the_first():
    rows = 8
    asked = run(KEPT, CHANGING, MATRIX, Heun())[1]
    plain = run(PLAIN, CHANGING, MATRIX, Heun())[1]
    assert asked == [3, plain[1]] and plain[1] > rows


def test_frozen_frames_keep_their_bits_and_have_no_say():
    matrix = lag_matrix(linspace_levels(5), 4, 0)
    got, asked = run(KEPT, CHANGING, freeze(matrix, (0, 2), level=1))
    np.testing.assert_array_equal(got[:, [0, 2]], np.asarray(X)[:, [0, 2]])
    np.testing.assert_array_equal(got[:, [1, 3]], run(KEPT, CHANGING, matrix)[0][:, [1, 3]])
    assert asked == [2, 5]


def test_a_frame_that_waited_has_a_difference_of_its_own_before_it_moves():
    """The second frame moves after the first: its first step asks, though the first's is young."""
    table = np.array([[1, 1], [0.8, 1], [0.6, 1], [0.6, 0.7], [0.6, 0.4], [0.3, 0.4], [0, 0]])
    x = X[:, :2]
    got, asked = run(KEPT, CONSTANT, from_times(table), x=x)
    np.testing.assert_allclose(got, run(PLAIN, CONSTANT, from_times(table), x=x)[0], atol=1e-5)
    # Rows 0 (first), 2 (second frame), 5 (the second is in its third step); 4 reuses.
    assert asked[1] == 6 and 2 <= asked[0] <= 4


def test_a_frame_that_is_noised_again_asks_again():
    table = np.array([[1.0], [0.5], [0.9], [0.7], [0.5], [0.0]]) * np.ones((1, 4))
    rule = dataclasses.replace(KEPT, longest=100)
    assert run(rule, CHANGING, from_times(table))[1] == [2, 5]


def test_rows_that_are_written_to_a_cache_ask_all_branches():
    matrix = dataclasses.replace(MATRIX, write=jnp.zeros((8, 4), bool).at[4].set(True))
    got, asked = run(dataclasses.replace(KEPT, longest=100), CHANGING, matrix)
    expected, again = run(dataclasses.replace(KEPT, longest=3))  # asks in the same rows
    np.testing.assert_array_equal(got, expected)
    assert asked == again == [2, 8]


def test_frames_that_rise_from_clean_data_ask_from_the_first_row_on():
    table = np.array([[0.0], [0.5], [1.0]]) * np.ones((1, 4))
    assert run(KEPT, CHANGING, from_times(table))[1] == [2, 2]


def test_windows_remember_at_their_own_place():
    matrix = lag_matrix(linspace_levels(3), 4, lag=3)
    whole, in_windows = (run(KEPT, CHANGING, m) for m in (matrix, windowed(matrix)))
    np.testing.assert_allclose(whole[0], in_windows[0], atol=2e-6)
    assert whole[1] == in_windows[1]


def test_frames_that_enter_a_stream_ask():
    rows = stream_rows(linspace_levels(4), lag=2)
    denoise = guided(KEPT, CONSTANT, FLOW)
    shape = (2, rows.buffer, *SHAPE[2:])
    carry = guided_carry(KEPT, lambda names: jnp.int32(0), shape)
    state = stream_init(denoise, Euler(), FLOW, rows, (2, *SHAPE[2:]), KEY, carry=carry)
    for _ in range(3):
        before = state.run.carry[1]
        state, _ = stream_step(denoise, Euler(), FLOW, rows, state)
        assert state.run.carry[1][0] > before[0]
    assert (state.run.carry[0].values.age[:, -rows.block :] == 0).all()


def test_bands_are_weighed_at_their_levels_and_add_up():
    low = low_frequencies(X)
    np.testing.assert_allclose(low_frequencies(low), low, atol=1e-5)
    np.testing.assert_allclose(low.mean((2, 3)), X.mean((2, 3)), atol=1e-6)
    assert 0 < np.std(low) < np.std(X)
    places = np.arange(10)[:, None, None] * np.ones(SHAPE)
    slow, wave = (jnp.cos(2 * jnp.pi * count * places / 10) for count in (1, 3))
    np.testing.assert_allclose(low_frequencies(wave), 0, atol=1e-5)
    np.testing.assert_allclose(low_frequencies(slow), slow, atol=1e-5)
    smooth, rough = (network(lambda x, d=d: d + 0 * x) for d in (slow[:1, :1], wave[:1, :1]))
    for branch, changed in ((smooth, "low"), (rough, "high")):
        plain = run(KEPT, branch)[0]
        for name in ("low", "high"):
            got = run(dataclasses.replace(KEPT, **{name: 1.5}), branch)[0]
            assert np.allclose(got, plain, atol=1e-4) == (name != changed)


def test_what_cannot_be_is_refused():
    with pytest.raises(jvdm.ConfigError, match="a batch cannot leave out the branch"):
        KeptDifference(3.0, execution="batched")
    with pytest.raises(jvdm.ConfigError, match="reused for -1 steps"):
        KeptDifference(3.0, longest=-1)
    with pytest.raises(jvdm.ConfigError, match="frames have rows and columns"):
        run(dataclasses.replace(KEPT, low=1.1), network(jnp.cos), x=X[..., 0, 0, 0])
