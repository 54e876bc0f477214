"""Attention that is divided among devices by samples and heads is the same as on one."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from pallas_kernels import BlockMask, block_sparse_attention
from pallas_kernels.attention.kernel import attend
from pallas_kernels.attention.pallas_tpu import PallasTPU
from pallas_kernels.attention.pallas_tpu.tiles import Limits
from tests.pallas_kernels.cases import random_inputs, random_mask

TOKENS = PartitionSpec("samples", None, "heads")
BY_ROW = PartitionSpec("samples", "heads")
KERNEL = PallasTPU(interpret=True, limits=Limits(128, 128, 1), resident=True)
WAYS = {
    "xla": functools.partial(block_sparse_attention, return_lse=True, implementation="xla"),
    "pallas_tpu": lambda q, k, v, mask: attend(KERNEL, q, k, v, mask, 0.3),
}


def places_of(mask: BlockMask) -> Any:
    """How the arrays of a mask are divided: lists by samples and heads, places by samples."""
    return jax.tree.map(lambda leaf: BY_ROW if leaf.ndim > 2 else PartitionSpec("samples"), mask)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_attention_by_samples_and_heads_is_that_of_one_device(way):
    """Four devices with a sample and two heads each, of which keys have one; gradients too."""
    mask = random_mask(0, 130, 200, 128, 128, lists=(2, 4))
    q, k, v, d_out, d_lse = random_inputs(0, mask)
    if len(jax.devices()) < 4:
        pytest.skip("needs four devices")
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("samples", "heads"))

    def both(q, k, v, d_out, d_lse, mask):
        out, pull = jax.vjp(lambda *x: WAYS[way](*x, mask), q, k, v)
        return (*out, *pull((d_out, d_lse)))

    divided = jax.shard_map(
        both,
        mesh=mesh,
        in_specs=(TOKENS, TOKENS, TOKENS, TOKENS, BY_ROW, places_of(mask)),
        out_specs=(TOKENS, BY_ROW, TOKENS, TOKENS, TOKENS),
        check_vma=False,  # kernels do not say along which axes their results vary
    )
    ours = jax.jit(divided)(q, k, v, d_out, d_lse, mask)
    whole = jax.jit(both)(q, k, v, d_out, d_lse, mask)
    assert len(ours[0].sharding.device_set) == 4
    for one, two in zip(ours, whole, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-6)
