"""Wan 2.1 1.3B at its full size: all 30 layers at full width against Diffusers.

`JVDM_FULL_SIZE=1 pytest tests/models/test_wan_full_size.py`: 66 s and 11.1 GB on two busy cores, so
no part of every run of the suite.
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

wan = importlib.import_module("jvdm.configs.families.wan")


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("JVDM_FULL_SIZE"), reason="needs 11 GB: JVDM_FULL_SIZE=1")
def test_1_3_billion_parameters_make_what_the_reference_makes():
    """In float32, of weights in bfloat16, which is half the memory: 2.8 GB, and twice to read."""
    reference = Reference(full_size.NAME)
    network = wan.transformer(reference.config).clone(dtype="float32")
    x, text = full_size.given()
    x = jnp.asarray(x.transpose(0, 2, 3, 4, 1))
    told = Conditions(TextStates(jnp.asarray(text), jnp.array([full_size.TOKENS])))
    call = Call.at(jnp.full((1, 1), full_size.LEVEL))
    shapes = jax.eval_shape(network.init, jax.random.key(0), x, call, told)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 1418996800
    weights = full_size.Drawn(reference.shapes)
    tree, report = leaves_of(wan.transformer_names(network), weights, shapes, full_size.NAME)
    assert (report.expected, report.loaded, report.unused) == (825, 825, 0)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf.read()), tree)
    del tree
    run = jax.jit(
        lambda params: network.apply({"params": params}, x, call, told)[0], compiler_options=QUICK
    )
    made = run(params).transpose(0, 4, 1, 2, 3)
    assert off(made, reference.outputs["made"]) < 1e-4
