"""Meshes by description: what is valid, and what is said of what is not."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from jvdm.errors import ConfigError
from jvdm.models.blockwise import check_mesh
from jvdm.parallel import (
    TRAINING,
    attention,
    check_rows,
    mesh_of,
    parts,
    read,
    shardings,
    using,
    whole,
)
from jvdm.parallel.mesh import description_of
from jvdm.parallel.placement import placement


@pytest.mark.parametrize(
    ("description", "found"),
    [
        ("auto", "data=4"),
        ("sequence=2, data=2", "data=2,sequence=2"),
        ("tensor=2,fsdp", "fsdp=2,tensor=2"),
        ("ring=1,sequence", "ring=1,sequence=4"),
    ],
)
def test_a_mesh_is_read_from_its_description(description, found):
    mesh = mesh_of(description)
    assert description_of(mesh) == found
    assert mesh_of(mesh) is mesh
    assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.parametrize("description", ["fsdp=3", "data,fsdp", "fsdp=2", "data=8,tensor"])
def test_valid_meshes_of_the_same_axes_are_listed(description):
    with pytest.raises(ConfigError) as error:
        mesh_of(description)
    listed = error.value.fix.removeprefix("use ").split(" or ")
    assert len(listed) == (1 if "," not in description else 3)
    for valid in listed:
        made = mesh_of(valid)
        assert made.size == 4
        assert set(made.axis_names) == {part.split("=")[0] for part in description.split(",")}


@pytest.mark.parametrize("description", ["", "rows=4", "data=2,data=2", "data=0", "data:4"])
def test_what_is_no_description_is_refused_with_the_axes(description):
    with pytest.raises(ConfigError, match="axes are stage, branch, data, fsdp, ring, seq"):
        mesh_of(description)


def test_videos_are_split_over_data_and_fsdp_alone():
    assert parts(mesh_of("data=2,fsdp=2")) == 4
    assert parts(mesh_of("data=2,tensor=2")) == 2
    assert parts(mesh_of("ring=2,sequence=2")) == parts(None) == 1


@pytest.mark.parametrize(
    ("path", "shape", "found"),
    [
        ("layers/self_q/kernel", (30, 64, 96), P(None, "fsdp", "tensor")),
        ("layers/self_out/kernel", (30, 64, 96), P(None, "tensor", "fsdp")),
        ("layers/self_attention/qkv/kernel_1", (64, 96), P("fsdp", "tensor")),
        ("layers/mlp/down/kernel", (64, 33), P("tensor")),
        ("opt_state/0/mu/layers/up/kernel", (2, 64, 33), P(None, "fsdp")),
        ("patch_in/kernel", (64, 96), P(None, "fsdp")),
        ("layers/up/bias", (30, 96), P(None, "fsdp")),
        ("decoder/up/kernel", (3, 3, 3, 64, 64), P()),
        ("layers/q_norm/gain", (2, 16), P()),
        ("head/gain", (4096,), P()),
        ("model/layers/modulation", (2, 6, 96), P()),
        ("text/words/embedding", (144, 96), P("fsdp")),
        ("text/words/embedding", (143, 96), P()),
    ],
)
def test_parameters_lie_by_path_and_shape(path, shape, found):
    assert placement(path, shape, mesh_of("fsdp=2,tensor=2")) == found


@pytest.mark.parametrize(
    ("path", "shape", "mesh", "found"),
    [
        ("layers/up/kernel", (2, 64, 96), "fsdp=2,sequence=2", P(None, None, ("fsdp", "sequence"))),
        ("layers/up/kernel", (64, 90), "fsdp=2,ring=2", P(("fsdp", "ring"))),
        ("layers/up/kernel", (63, 90), "fsdp=2,sequence=2", P(None, "fsdp")),
        ("layers/up/kernel", (2, 64, 96), "sequence=4", P()),
        ("layers/up/kernel", (2, 64, 96), "data=2,sequence=2", P()),
    ],
)
def test_parameters_are_split_over_what_shares_tokens_too_where_it_divides(
    path, shape, mesh, found
):
    assert placement(path, shape, mesh_of(mesh)) == found


def test_layers_lie_on_stages():
    mesh = mesh_of("stage=2,fsdp=2")
    assert placement("layers/q/kernel", (4, 64, 96), mesh) == P("stage", None, "fsdp")
    assert placement("model/layers/q_norm/gain", (4, 16), mesh) == P("stage")
    assert placement("layers/q/kernel", (3, 64, 96), mesh) == P(None, None, "fsdp")
    assert placement("head/kernel", (64, 96), mesh) == P(None, "fsdp")


def test_products_that_do_not_divide_are_whole_and_told():
    mesh, shape = mesh_of("tensor=4"), jax.ShapeDtypeStruct((64, 66), "float32")
    tree = {"up": {"kernel": shape}, "down": {"kernel": shape}}
    assert shardings(tree, mesh)["up"]["kernel"].spec == P()
    assert shardings(tree, mesh)["down"]["kernel"].spec == P("tensor")
    (note,) = whole(tree, mesh)
    assert "tensor=4" in note and "up/kernel (66 features)" in note and "down" not in note
    assert whole(tree, mesh_of("fsdp=4")) == ()


def test_branches_of_guidance_are_split_evenly_and_not_in_training():
    check_rows(None, 3, 1)
    check_rows(mesh_of("branch=2,data=2"), 2, 4)
    with pytest.raises(ConfigError, match=r"branch=4 .* evaluates 2.*use branch=2"):
        check_rows(mesh_of("branch=4"), 1, 2)
    check_rows(mesh_of("stage=4"), 1, 1, by_stages=True)
    with pytest.raises(ConfigError, match="use --system dualparal"):
        check_rows(mesh_of("stage=4"), 1, 1)
    for mesh in ("branch=2,data=2", mesh_of("stage=2,data=2")):
        with pytest.raises(ConfigError, match="axes are data, fsdp, ring, sequence, tensor"):
            mesh_of(mesh, axes=TRAINING)


@pytest.mark.parametrize("axis", ["ring", "sequence", "tensor"])
def test_what_stages_cannot_be_mixed_with_is_refused(axis):
    check_mesh(mesh_of("stage=2,fsdp=2"), 2)
    with pytest.raises(ConfigError, match=f"stage=2,{axis}=2.*with data, fsdp and branch alone"):
        check_mesh(mesh_of(f"stage=2,{axis}=2"), 2)
    with pytest.raises(ConfigError, match="3 stages; the mesh has 2; begin anew"):
        check_mesh(mesh_of("stage=2,data=2"), 3)


@pytest.mark.parametrize(
    ("mesh", "by_hand"),
    [
        ("data=4", False),
        ("fsdp=4", False),
        ("branch=4", True),
        ("ring=4", True),
        ("tensor=4", True),
    ],
)
def test_what_a_kernel_computes_is_split_by_hand_but_over_videos(mesh, by_hand):
    x = jnp.zeros((4, 32, 4, 8))
    with using(mesh_of(mesh)):
        traced = [jax.make_jaxpr(call)(x, x, x) for call in (attention, reads)]
    assert ["shard_map" in str(program) for program in traced] == [by_hand] * 2


def reads(q, k, v):
    """A prompt of which all states count."""
    return read(q, k, v, None)
