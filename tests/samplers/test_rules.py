"""Rules of levels and matrices: the functions that they stand for, as values."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.errors import ConfigError
from jvdm.samplers import (
    AutoregressiveMatrix,
    BetaLevels,
    DiffusersLevels,
    ExplicitLevels,
    ExponentialLevels,
    ExpShiftedLevels,
    GivenMatrix,
    KarrasLevels,
    LagMatrix,
    LevelsRule,
    LinearQuadraticLevels,
    MatrixRule,
    ShiftedLevels,
    StepLevels,
    SynchronousMatrix,
    TrapezoidMatrix,
    TruncatedMatrix,
    WindowedMatrix,
    beta_levels,
    cost,
    diffusers_levels,
    exp_shift_levels,
    explicit_levels,
    exponential_levels,
    freeze,
    karras_levels,
    lag_matrix,
    linear_quadratic_levels,
    linspace_levels,
    shift_levels,
    spaced_steps,
    step_levels,
    synchronous,
    times,
    trapezoid_matrix,
    truncate,
    validate,
    windowed,
)
from jvdm.values import from_data, to_data

WAVE = LagMatrix(2, 2)
LEVELS = linspace_levels(8)
EDM = {"_class_name": "EDMEulerScheduler", "sigma_min": 0.01}
GRIDS = {
    "shifted": (ShiftedLevels(16, 3.0), shift_levels(linspace_levels(16), 3.0), 1),
    "plain": (ShiftedLevels(5), linspace_levels(5), 1),
    "exp": (ExpShiftedLevels(16, 0.7), exp_shift_levels(linspace_levels(16), 0.7), 1),
    "karras": (KarrasLevels(9, 0.02, 80.0), karras_levels(9, 0.02, 80.0), 3),
    "exponential": (ExponentialLevels(9, 0.1, 0.9), exponential_levels(9, 0.1, 0.9), 2),
    "beta": (BetaLevels(9, 0.1, 0.9), beta_levels(9, 0.1, 0.9), 4),
    "quadratic": (LinearQuadraticLevels(8, 0.05), linear_quadratic_levels(8, 0.05), 1),
    "steps": (StepLevels(9, "leading"), step_levels(spaced_steps(9, "leading")), 0),
    "diffusers": (DiffusersLevels(9, json.dumps(EDM)), diffusers_levels(EDM, 9), 0),
    "explicit": (ExplicitLevels((0.9, 0.3)), explicit_levels([0.9, 0.3]), 2),
}
MATRICES = {
    "synchronous": (SynchronousMatrix(), synchronous(LEVELS, 6), 0),
    "wave": (WAVE, lag_matrix(LEVELS, 6, 2, 2), 0),
    "autoregressive": (AutoregressiveMatrix(3), lag_matrix(LEVELS, 6, 8, 3), 0),
    "first block": (LagMatrix(2, 3, 1), lag_matrix(LEVELS, 6, 2, 3, first_block=1), 0),
    "first of all": (
        AutoregressiveMatrix(4, first_block=1),
        lag_matrix(LEVELS, 6, 8, 4, first_block=1),
        0,
    ),
    "both ends": (TrapezoidMatrix(2, 2), trapezoid_matrix(LEVELS, 6, 2, 2), 0),
    "sdedit": (TruncatedMatrix(WAVE, 0.5), truncate(lag_matrix(LEVELS, 6, 2, 2), 4), 1),
    "given": (GivenMatrix(WAVE, (0, -1)), freeze(lag_matrix(LEVELS, 6, 2, 2), (0, 5)), 0),
    "context": (
        WindowedMatrix(AutoregressiveMatrix(2), context=1),
        windowed(lag_matrix(LEVELS, 6, 8, 2), 1),
        0,
    ),
    "in work": (WindowedMatrix(AutoregressiveMatrix(2)), windowed(lag_matrix(LEVELS, 6, 8, 2)), 0),
    "window": (
        WindowedMatrix(AutoregressiveMatrix(2), 3),
        windowed(lag_matrix(LEVELS, 6, 8, 2), context=1),
        0,
    ),
    "both": (
        TruncatedMatrix(WindowedMatrix(AutoregressiveMatrix(2)), 0.25),
        truncate(windowed(lag_matrix(LEVELS, 6, 8, 2)), 6),
        1,
    ),
}
VALUES = {**GRIDS, **MATRICES}


@pytest.mark.parametrize("name", GRIDS)
def test_levels_are_the_bits_of_the_function(name):
    rule, expected, _ = GRIDS[name]
    assert isinstance(rule, LevelsRule) and getattr(rule, "num_steps") == len(expected) - 1  # noqa: B009
    np.testing.assert_array_equal(rule(), expected)


@pytest.mark.parametrize("name", MATRICES)
def test_matrices_are_those_of_the_functions(name):
    rule, expected, _ = MATRICES[name]
    got = validate(rule(LEVELS, 6))
    assert isinstance(rule, MatrixRule) and got.window == expected.window
    for leaf, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(leaf, other)


@pytest.mark.parametrize("name", VALUES)
def test_rules_are_values_whose_numbers_are_leaves(name):
    rule, _, numbers = VALUES[name]
    leaves, tree = jax.tree.flatten(rule)
    assert len(leaves) == numbers and jax.tree.unflatten(tree, leaves) == rule
    assert from_data(to_data(rule)) == rule and hash(rule) == hash(rule)


def test_another_number_is_the_same_structure_and_another_count_is_not():
    assert jax.tree.structure(ShiftedLevels(4, 1.0)) == jax.tree.structure(ShiftedLevels(4, 3.0))
    assert jax.tree.structure(ShiftedLevels(4)) != jax.tree.structure(ShiftedLevels(5))
    assert jax.tree.structure(LagMatrix(4)) != jax.tree.structure(LagMatrix(5))
    changed = [TruncatedMatrix(WAVE, strength)(LEVELS, 6) for strength in (0.2, 0.9)]
    assert jax.tree.structure(changed[0]) == jax.tree.structure(changed[1])


@pytest.mark.parametrize("strength, steps", [(1.0, 8), (0.5, 4), (0.3, 2), (0.01, 1)])
def test_strength_is_the_share_of_the_steps_that_are_made(strength, steps):
    matrix = TruncatedMatrix(SynchronousMatrix(), strength)(LEVELS, 3)
    assert cost(matrix).calls == steps
    np.testing.assert_array_equal(times(matrix)[0], jnp.full(3, steps / 8))


def test_a_window_holds_finished_frames_before_those_in_work():
    matrix = WindowedMatrix(AutoregressiveMatrix(2), 4)(LEVELS, 6)
    assert matrix.window == 4
    np.testing.assert_array_equal(matrix.start, np.repeat([0, 0, 2], 8))
    assert WindowedMatrix(SynchronousMatrix(), 9)(LEVELS, 6).window == 6


@pytest.mark.parametrize(
    "rule, message",
    [
        (TruncatedMatrix(WAVE, 0.0), "strength of 0.0"),
        (TruncatedMatrix(WAVE, 1.5), "strength of 1.5"),
        (WindowedMatrix(SynchronousMatrix(), 4), "window of 4.*6 frames are in work"),
        (LagMatrix(-1), "lag -1"),
    ],
)
def test_impossible_numbers_are_refused(rule, message):
    with pytest.raises(ConfigError, match=message):
        rule(LEVELS, 6)
