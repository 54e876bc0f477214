"""The table of orders in the package's README, and that history is per frame."""

import re

import numpy as np
import pytest

from jvdm.samplers import DPMSolverPP2M
from tests.samplers.orders import CASES, PROCESSES, README, orders, row


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_readme_says_what_is_measured(name):
    rows = README.read_text().splitlines()
    assert row(name) in rows


def test_the_readme_has_no_other_rows():
    names = re.findall(r"^\| ([a-z_0-9]+(?:, [a-z ]+)?) \|", README.read_text(), re.MULTILINE)
    assert names == ["solver", *CASES]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_orders_hold_when_frames_wait_and_have_grids_of_their_own(name):
    solver, order = CASES[name]
    observed = orders(solver, PROCESSES["flow"], mixed=True)[-1]
    assert order - 0.2 < observed < order + 0.5, observed


@pytest.mark.parametrize("rule", ["bh1", "bh2", "exact"])
def test_all_rules_of_a_slope_are_of_second_order(rule):
    observed = orders(DPMSolverPP2M(rule=rule), PROCESSES["flow"])[-1]
    assert 1.8 < observed < 2.5, observed


def test_the_readme_examples_run():
    example, solver, modalities = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict = {}
    exec(example, names)  # noqa: S102
    np.testing.assert_allclose(names["videos"], 0, atol=1e-5)
    exec(solver, names)  # noqa: S102
    exec(modalities, names)  # noqa: S102
    np.testing.assert_allclose(names["latents"], np.zeros((1, 50, 8)), atol=1e-5)
    exec(re.sub(r'solver_named\(".*"\)', "Halfway()", example), names)  # noqa: S102
    np.testing.assert_allclose(names["videos"], 0, atol=1e-5)
