"""What programs send, counted in their HLO, against what was written down."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from jvdm.parallel import mesh_of
from jvdm.parallel.collectives import sent

BYTES = 4 * 8 * 16  # of what a device holds of f32[32, 16]


def compiled(program, x) -> str:
    return jax.jit(program).lower(x).compile().as_text() or ""


def body(kind, x):
    if kind == "all-gather":
        return jax.lax.all_gather(x, "ring").sum(0)
    if kind == "all-reduce":
        return jax.lax.psum(x, "ring")
    if kind == "all-to-all":
        return jax.lax.all_to_all(x, "ring", 1, 0, tiled=True).reshape(x.shape)
    return jax.lax.ppermute(x, "ring", [(i, (i + 1) % 4) for i in range(4)])


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("all-gather", 3 * BYTES),
        ("all-reduce", 3 * BYTES // 2),
        ("all-to-all", 3 * BYTES // 4),
        ("collective-permute", BYTES),
    ],
)
def test_a_loop_sends_in_every_turn(kind, size):
    mesh = mesh_of("ring=4")

    places: Any = {"mesh": mesh, "in_specs": P("ring"), "out_specs": P("ring"), "check_vma": False}

    @functools.partial(jax.shard_map, **places)
    def program(x):
        turns = jax.lax.scan(lambda y, _: (jnp.sin(body(kind, y)), None), x, length=5)[0]
        return turns + body(kind, x) if kind == "collective-permute" else turns

    assert sent(compiled(program, jnp.zeros((32, 16)))) == {
        kind: (6 if kind == "collective-permute" else 5) * size
    }


def test_a_program_of_one_device_sends_nothing():
    assert sent(compiled(jnp.sin, jnp.zeros(4))) == {}
