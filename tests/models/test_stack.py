"""Stacks of layers."""

import concurrent.futures
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jvdm.models.stack import layer_stack
from jvdm.models.video_dit import VideoDiTLayer


def test_programs_that_are_traced_side_by_side_make_stacks_of_one_class():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads take turns inside what makes a class
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: layer_stack(VideoDiTLayer, 2, "all", 1, False), range(64)))
    finally:
        sys.setswitchinterval(interval)
    assert "name" in VideoDiTLayer.__dataclass_fields__


@pytest.mark.parametrize("remat", ["none", "matmuls"])
def test_layers_that_draw_nothing_are_traced_once_and_the_same_program(remat):
    calls = []

    class Shift(nn.Module):
        @nn.compact
        def __call__(self, x, each, shared):
            calls.append(x)
            return x + self.param("shift", nn.initializers.normal(), x.shape), each

    x, programs, counts = jnp.zeros(3), [], []
    twice, once = (layer_stack(Shift, 2, remat, 1, draws)() for draws in (True, False))
    params = twice.init(jax.random.key(0), x, x[:2], None)
    for stack in (twice, once):
        calls.clear()
        programs.append(str(jax.make_jaxpr(stack.apply)(params, x, x[:2], None)))
        counts.append(len(calls))
    assert counts == [2, 1]
    assert programs[0] == programs[1]
