"""The kernels for TPUs on simulated memories: copies are waited for."""

import dataclasses
import functools
import importlib
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import BlockMask
from pallas_kernels.attention.kernel import attend
from pallas_kernels.attention.pallas_tpu import PallasTPU
from pallas_kernels.attention.pallas_tpu.tiles import Limits
from tests.pallas_kernels.cases import random_inputs

SIZES: dict[str, Any] = {"q_len": 64, "kv_len": 250, "block_q": 32, "block_kv": 64}
KERNEL = PallasTPU(interpret=True, limits=Limits(queries=128, keys=128, parts=4))


@functools.partial(jax.jit, static_argnums=0)
def both_passes(kernel, inputs, mask) -> Any:
    q, k, v, d_out, d_lse = inputs
    out, pull = jax.vjp(lambda *x: attend(kernel, *x, mask, 0.3), q, k, v)
    return (*jax.tree.leaves(out), *pull((d_out, d_lse)))


@pytest.mark.slow
@pytest.mark.parametrize("copies", ["eager", "on_wait"])  # as early and as late as can be
def test_nothing_is_read_before_it_is_there(copies):
    """A wait for a copy that was never started hangs: pytest ends that after 10 minutes."""
    mask = BlockMask.full(**SIZES)  # two steps for each tile, the last key block short
    inputs = random_inputs(0, mask, batch=1, heads=1, kv_heads=1)
    how = pltpu.InterpretParams(detect_races=True, dma_execution_mode=copies)
    ours = both_passes(dataclasses.replace(KERNEL, interpret=how), inputs, mask)
    for one, two in zip(ours, both_passes(KERNEL, inputs, mask), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)
    interpreter = importlib.import_module("jax._src.pallas.mosaic.interpret.interpret_pallas_call")
    if not hasattr(interpreter, "races"):
        pytest.skip("this jax keeps no races where 0.10.2 does")
    assert not interpreter.races.races_found
