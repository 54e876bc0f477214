"""LTX-Video 2B at its full size: all 28 layers at full width against Diffusers.

`JVDM_FULL_SIZE=1 pytest tests/models/test_ltx_full_size.py`: 55 s and 12.7 GB on two busy cores,
so no part of every run of the suite.
"""

import importlib
import os

import jax
import jax.numpy as jnp
import pytest

from jvdm.models import Conditions, TextStates
from jvdm.samplers import Call
from jvdm.weights.convert import leaves_of
from tests.parity import full_size
from tests.parity.references import Reference, off
from tests.vae.nano import QUICK

ltx = importlib.import_module("jvdm.configs.families.ltx")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Some donated buffers")
@pytest.mark.skipif(not os.environ.get("JVDM_FULL_SIZE"), reason="needs 13 GB: JVDM_FULL_SIZE=1")
def test_2_billion_parameters_make_what_the_reference_makes():
    """In float32, 7.7 GB; of weights in bfloat16 the compiler would hold both."""
    reference = Reference(full_size.LTX_NAME)
    network = ltx.transformer(reference.config).clone(dtype="float32")
    x, text = full_size.given_to_ltx()
    x = jnp.asarray(x.reshape(1, *full_size.LTX_SIZES, -1))
    told = Conditions(TextStates(jnp.asarray(text), jnp.array([full_size.TOKENS])))
    call = Call.at(jnp.full((1, full_size.LTX_SIZES[0]), full_size.LEVEL))
    shapes = jax.eval_shape(network.init, jax.random.key(0), x, call, told)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 1923385472
    weights = full_size.Drawn(reference.shapes)
    tree, report = leaves_of(ltx.transformer_names(network), weights, shapes, full_size.LTX_NAME)
    assert (report.expected, report.loaded, report.unused) == (715, 715, 0)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf.read(dtype="float32")), tree)
    del tree
    run = jax.jit(
        lambda params: network.apply({"params": params}, x, call, told)[0],
        donate_argnums=0,  # 12.7 GB at most, more than 13 without
        compiler_options=QUICK,
    )
    assert off(run(params), reference.outputs["made"]) < 1e-4
