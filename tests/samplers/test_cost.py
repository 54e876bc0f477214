"""The loop by itself: one program for all matrices of a shape, and no word to the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.samplers import Euler, pad_rows, validate
from tests.samplers import cost


def test_a_run_is_one_program_for_every_matrix_and_sends_nothing():
    assert len({str(jax.tree.structure(matrix)) for matrix in cost.matrices().values()}) == 1
    for matrix in cost.matrices().values():
        validate(matrix, cost.FLOW)
        assert (matrix.num_rows, matrix.latent_frames) == (50, 32)
    measured = cost.cost(Euler(), (1,))
    assert measured.programs == 1 and set(measured.ms_per_row) == set(cost.matrices())
    assert min(measured.ms_per_row.values()) > 0


def test_another_shape_is_another_program_and_a_transfer_is_an_error(monkeypatch):
    """That what is measured can fail: both faults are seen."""
    padded = {name: pad_rows(matrix, 51) for name, matrix in cost.matrices().items()}
    one = next(iter(cost.matrices().items()))
    monkeypatch.setattr(cost, "matrices", lambda: dict([one, ("padded", padded["wave"])]))
    assert cost.cost(Euler(), (1,)).programs == 2

    monkeypatch.setattr(cost, "runner", lambda solver: (lambda *given: jnp.asarray(np.ones(3)), []))
    with pytest.raises(RuntimeError, match="transfer"):
        cost.cost(Euler(), (1,))
