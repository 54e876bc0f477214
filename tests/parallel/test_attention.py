"""Attention whose tokens are not split: what XLA does by itself, and what it cannot hold."""

import sys

import jax
import jax.numpy as jnp
import pytest

from jvdm.parallel import attention, data_mesh
from pallas_kernels.attention.api import LONG_ON_TPU

MODULE = sys.modules["jvdm.parallel.attention"]  # the package has a function of that name


@pytest.mark.parametrize(
    ("tpus", "length", "listed"),
    [(True, LONG_ON_TPU, True), (True, LONG_ON_TPU - 1, False), (False, LONG_ON_TPU, False)],
)
def test_long_videos_on_tpus_list_all_blocks_also_where_only_videos_are_split(
    monkeypatch, tpus, length, listed
):
    """On a TPU XLA would keep the scores of all pairs: Wan 14B took 293 GB of a chip's 96."""
    calls = []
    monkeypatch.setattr(MODULE, "_on_tpus", lambda mesh: tpus)
    monkeypatch.setattr(MODULE, "_attend", lambda q, *rest: (calls.append(q.shape), (q, None))[1])
    monkeypatch.setattr(MODULE, "block_sparse_attention", lambda q, *rest, **named: q)
    monkeypatch.setattr(MODULE, "used", lambda: data_mesh(1))
    jax.eval_shape(attention, *(jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32),) * 3)
    assert calls == ([(1, length, 1, 8)] if listed else [])
