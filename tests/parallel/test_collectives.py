"""What programs send, counted in their HLO, against what was written down."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jvdm.parallel import mesh_of, using
from jvdm.parallel.collectives import sent
from pallas_kernels import BlockMask

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


@pytest.mark.parametrize(
    ("split", "kept", "size"),
    [
        (("ring",), (), 3 * BYTES),
        (("data", "ring"), ("data",), BYTES),
        (("data", "ring"), (), 3 * BYTES),
    ],
)
def test_what_xla_splits_by_itself_is_counted(split, kept, size):
    """It names axes of a mesh where a collective is among all devices of them."""
    mesh = mesh_of("ring=4" if len(split) == 1 else "data=2,ring=2")
    places = {
        name: NamedSharding(mesh, P(axes)) for name, axes in zip("io", (split, kept), strict=True)
    }
    jitted = jax.jit(jnp.sin, in_shardings=places["i"], out_shardings=places["o"])
    made = jitted.lower(jax.ShapeDtypeStruct((32, 16), jnp.float32)).compile().as_text() or ""
    assert ("replica_groups=mesh[" in made) == (not kept)
    assert sent(made) == {"all-gather": size}


@pytest.mark.parametrize(("axes", "parts"), [("'b'", 4), ("'a','b'", 8), ("'b':(1)2", 2)])
def test_axes_of_a_mesh_say_among_how_many_a_collective_is(axes, parts):
    groups = f"replica_groups=mesh['a'=2,'b'=4] {{{axes}}}, dimensions={{0}}"
    line = f"  %gathered = f32[32,16]{{1,0}} all-gather(%x), {groups}"
    program = f"ENTRY %main (x: f32[8,16]) -> f32[32,16] {{\n{line}\n}}"
    assert sent(program) == {"all-gather": 4 * BYTES * (parts - 1) // parts}


def test_a_program_of_one_device_sends_nothing():
    assert sent(compiled(jnp.sin, jnp.zeros(4))) == {}


@pytest.mark.parametrize(("axis", "parts"), [(1, 2), (1, 4), (2, 2), (0, 2)])
def test_block_lists_are_made_where_their_heads_are(axis, parts):
    """Nothing is sent, over samples, heads or queries, and lists have the bits of one device."""
    scores = jnp.round(8 * jax.random.uniform(jax.random.key(0), (2, 8, 6, 6)))  # many are equal
    scores = scores.at[:, 0].set(0.0).at[:, 1, :, ::2].set(-0.0)
    partial = jax.random.bernoulli(jax.random.key(1), 0.3, scores.shape)
    sizes = {"block_q": 8, "block_kv": 8, "q_len": 48, "kv_len": 48}

    def of_map(scores, partial):
        mask = BlockMask.from_dense(scores > 4, partial, max_blocks=4, **sizes)
        return mask, mask.to_dense(), mask.transpose()

    def of_scores(scores):
        return BlockMask.from_top(scores, count=3, mass=0.5, **sizes)

    mesh = mesh_of(f"tensor={parts}", jax.devices()[:parts])
    places = NamedSharding(mesh, P(*[None] * axis, "tensor"))
    split = jax.device_put((scores, partial), places)
    for program, count in ((of_map, 2), (of_scores, 1)):
        if program is of_map and axis == 2:  # blocks of keys have their lists too: it transposes
            continue
        with using(mesh):
            made = jax.jit(program, out_shardings=places).lower(*split[:count]).compile()
        found, alone = made(*split[:count]), program(*(scores, partial)[:count])
        jax.tree.map(np.testing.assert_array_equal, found, alone)
        assert sent(made.as_text() or "") == {}
