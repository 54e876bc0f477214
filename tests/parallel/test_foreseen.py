"""What is foreseen without a compiler, against what XLA's programs for eight CPU devices send."""

import json
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jvdm import works
from jvdm.families import FAMILIES
from jvdm.parallel import mesh_of, using
from jvdm.parallel.collectives import sent
from jvdm.parallel.foreseen import foreseen
from jvdm.plan import _compiled

MESHES = ("data=8", "fsdp=4,sequence=2", "data=2,ring=2,tensor=2")


@pytest.mark.slow
def test_a_training_step_sends_what_was_foreseen(run_python):
    done = run_python("-m", "tests.parallel.sends", *MESHES, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    data, ulysses, mixed = ((one["sent"], one["foreseen"]) for one in lines)
    # Metrics are summed too.
    assert data[1]["all-reduce"] == pytest.approx(data[0]["all-reduce"], rel=1e-3)
    assert data[1].keys() == {"all-reduce"}
    sends, counted = ulysses
    # XLA for CPUs reduces whole where others reduce what a device keeps, at twice the price; and it
    # keeps what it gathered of the first and last layers.
    reduced = counted["all-reduce"] + 2 * counted["reduce-scatter"]
    assert reduced == pytest.approx(sends["all-reduce"], rel=0.2)
    assert counted["all-gather"] == pytest.approx(sends["all-gather"], rel=0.2)
    assert counted["all-to-all"] == pytest.approx(sends["all-to-all"], rel=0.1)
    sends, counted = mixed
    # Where features are split XLA gathers them as well.
    assert 0.5 * sum(sends.values()) < sum(counted.values()) < 1.1 * sum(sends.values())
    assert counted["collective-permute"] == pytest.approx(sends["collective-permute"], rel=0.2)


def placed(shape, mesh, *spec):
    place = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)


@pytest.mark.parametrize(
    ("mesh", "spec", "expected"),
    [
        ("data=4", (), {"all-reduce": 2 * 3 / 4}),
        ("fsdp=4", ("fsdp",), {"all-gather": 2 * 3 / 4, "reduce-scatter": 3 / 4}),
        (
            "data=2,fsdp=2",
            ("fsdp",),
            {"all-gather": 2 / 2, "reduce-scatter": 1 / 2, "all-reduce": 2 / 2 / 2},
        ),
        ("sequence=4", (), {"all-reduce": 2 * 3 / 4}),
        ("fsdp=2,ring=2", (("fsdp", "ring"),), {"all-gather": 6 / 4, "reduce-scatter": 3 / 4}),
        ("fsdp=2,tensor=2", ("fsdp", "tensor"), {"all-gather": 1 / 2, "reduce-scatter": 1 / 4}),
    ],
)
def test_a_parameter_is_gathered_twice_and_its_gradient_summed_once(mesh, spec, expected):
    """By hand, of 64 x 64 numbers, in parts of the parameter; a call gathers it once."""
    where = mesh_of(mesh)
    kernel = placed((64, 64), where, *spec)
    jaxpr = jax.make_jaxpr(lambda x: x @ x)(jnp.zeros((8, 8))).jaxpr
    size = 4 * 64 * 64
    found = foreseen(jaxpr, {"kernel": kernel}, where, trains=True)
    assert found == {kind: share * size for kind, share in expected.items()}
    once = foreseen(jaxpr, {"kernel": kernel}, where, trains=False)
    gathered = expected.get("all-gather", 0) / 2
    assert once == ({"all-gather": gathered * size} if gathered else {})


def test_what_a_program_exchanges_counts_as_often_as_it_runs():
    mesh = mesh_of("ring=4")
    spec = PartitionSpec("ring")

    def body(x):
        turned = jax.lax.ppermute(x, "ring", [(i, (i + 1) % 4) for i in range(4)])
        return turned + jax.lax.psum(x, "ring")

    island = jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)

    def program(x):
        return jax.lax.scan(lambda y, _: (island(y), None), x, length=5)[0]

    with using(mesh):
        jaxpr = jax.make_jaxpr(program)(jnp.zeros((32, 16))).jaxpr
    part = 4 * math.prod((8, 16))
    found = foreseen(jaxpr, {}, mesh, trains=False)
    assert found == {"all-reduce": 5 * 2 * part * 3 // 4, "collective-permute": 5 * part}


def test_branches_of_guidance_send_a_prediction_and_nothing_else():
    """A row of the sampler, compiled: latents and what comes of them are where they are needed."""
    mesh = mesh_of("branch=2", jax.devices()[:2])
    text, row, decoder = works.video_of("wan-tiny", mesh)
    frames, height, width, channels = FAMILIES["wan-tiny"].latents
    prediction = 4 * frames * height * width * channels
    sizes = {one.name: sent(_compiled(one, mesh).as_text()) for one in (text, row, decoder)}
    assert sizes == {text.name: {}, row.name: {"all-gather": prediction}, decoder.name: {}}
