"""DPM-Solver++ and UniPC against their authors' programs, by numbers of `published.py`."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.samplers import (
    Denoised,
    DPMSolverPP2M,
    DPMSolverPP2S,
    DPMSolverPP3M,
    UniPC,
    lag_matrix,
    sample,
    vp_continuous,
)
from tests.samplers.published import CASES, EVEN, LAST, START, STEPS, STORED

PROCESS = vp_continuous()
PUBLISHED = json.loads(STORED.read_text())
SOLVERS = {
    "dpmpp_2m": DPMSolverPP2M(),
    "dpmpp_2m, taylor": DPMSolverPP2M(rule="exact"),
    "dpmpp_3m, published": DPMSolverPP3M(compat=True),
    "dpmpp_2s": DPMSolverPP2S(),
    "unipc1": UniPC(1, lower_order_final=False),
    "unipc2": UniPC(2, lower_order_final=False),
    "unipc2, bh1": UniPC(2, rule="bh1", lower_order_final=False),
    "unipc3": UniPC(3, lower_order_final=False),
    "unipc3, bh1": UniPC(3, rule="bh1", lower_order_final=False),
}


def network(x, call, carry):
    t = call.t[..., None]
    x0 = (x + jnp.sin(x)) / (2 + t**2)
    return Denoised(x0, (x - PROCESS.alpha(t) * x0) / PROCESS.sigma(t)), carry


def test_all_that_was_stored_is_compared():
    assert SOLVERS.keys() == PUBLISHED.keys() == CASES.keys()


@pytest.mark.parametrize("name", SOLVERS)
def test_every_frame_of_a_wave_ends_where_the_authors_program_does(name):
    with jax.enable_x64(True):
        levels = jnp.linspace(1.0, LAST, STEPS + 1)
        if CASES[name][1].items() >= EVEN.items():
            most, least = PROCESS.lam(levels)[0], PROCESS.lam(levels)[-1]
            levels = PROCESS.inv_lam(jnp.linspace(most, least, STEPS + 1))
        levels = jnp.append(levels, 0.0)
        matrix = lag_matrix(levels, len(START), lag=2)
        x = jnp.asarray(START)[None, :, None]
        got = sample(network, SOLVERS[name], PROCESS, matrix, x, jax.random.key(0)).x
    np.testing.assert_allclose(got[0, :, 0], PUBLISHED[name], rtol=1e-9)
