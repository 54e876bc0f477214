"""Arrays that are read where they are needed: of a file, the bytes of a process's own shards."""

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jvdm.errors import WeightsError
from jvdm.pipeline.loading import ready
from jvdm.weights.convert import (
    CONV_3D,
    FIRST,
    LINEAR,
    SAME,
    Rule,
    Table,
    converted,
    halves,
    joined,
    leaves_of,
    published,
)
from jvdm.weights.leaves import LARGE, Leaf

P = PartitionSpec
LAYERS, HEAD = 4, 4
SHAPES = {
    "kernel": (LAYERS, 16, 32),
    "heads_kernel": (LAYERS, 16, 32),
    "kernel_patch": (8, 32),
    "kernel_conv": (1, 2, 2, 8, 16),
    "table": (LAYERS, 8, 16),
    "words": (64, 16),
}
LAYOUTS = {
    "kernel": LINEAR,
    "heads_kernel": LINEAR.then(halves(HEAD)),
    "kernel_patch": CONV_3D.then(joined(1, 2, 2, -1)),
    "kernel_conv": CONV_3D,
    "table": FIRST,
    "words": SAME,
}
TABLE = Table(
    tuple(
        Rule("layers.{}." * (shape[0] == LAYERS) + name, name, LAYOUTS[name])
        for name, shape in SHAPES.items()
    )
)
SPLITS = {
    "rows": lambda shape: P(*[None] * (len(shape) - 2), "x"),
    "columns": lambda shape: P(*[None] * (len(shape) - 1), "x"),
    "layers": lambda shape: P("x") if shape[0] == LAYERS else P(),
    "nowhere": lambda shape: P(),
}


class Counting(np.ndarray):
    """An array in a file; notes the bytes of what is read of it."""

    seen: list[int]

    def __getitem__(self, index):
        part = np.asarray(self)[index]
        self.seen.append(part.nbytes)
        return part


def counting(tensors):
    """Returns the arrays, and the list in which the bytes are noted that are read of them."""
    seen: list[int] = []
    files = {name: array.view(Counting) for name, array in tensors.items()}
    for array in files.values():
        array.seen = seen
    return files, seen


class Network:
    """What `ready` asks a network for."""

    dtype = "bfloat16"


def given(dtype=ml_dtypes.bfloat16):
    """Returns drawn parameters, and what they are published as."""
    rng = np.random.default_rng(0)
    tree = {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}
    return tree, published(TABLE, tree)


@pytest.mark.parametrize("split", SPLITS)
def test_a_process_reads_the_bytes_of_its_shards_once(split):
    tree, tensors = given()
    files, seen = counting(tensors)
    lazy, report = leaves_of(TABLE, files, tree, "a file")
    assert not seen and report.loaded == len(tensors)
    mesh = Mesh(np.asarray(jax.devices()), ("x",))
    # One device of the mesh is what a process of its own would hold.
    for name, leaf in lazy.items():
        sharding = NamedSharding(mesh, SPLITS[split](SHAPES[name]))
        for index in sharding.devices_indices_map(SHAPES[name]).values():
            seen.clear()
            part = leaf.read(index)
            np.testing.assert_array_equal(part, tree[name][index], err_msg=name)
            assert sum(seen) == part.nbytes, name
    if split == "nowhere":
        assert sum(seen) == tree["words"].nbytes


@pytest.mark.parametrize("split", SPLITS)
def test_arrays_on_devices_equal_the_whole_bit_for_bit(split):
    tree, tensors = given()
    files, seen = counting(tensors)
    lazy, _ = leaves_of(TABLE, files, tree, "a file")
    mesh = Mesh(np.asarray(jax.devices()), ("x",))
    shardings = {name: NamedSharding(mesh, SPLITS[split](shape)) for name, shape in SHAPES.items()}
    placed = ready(lazy, Network(), shardings)
    once = ready(converted(TABLE, tensors, tree, "a file")[0], Network())
    for name, leaf in placed.items():
        assert leaf.sharding == shardings[name] and leaf.dtype == once[name].dtype
        np.testing.assert_array_equal(leaf, once[name], err_msg=name)
    assert {name: str(leaf.dtype) for name, leaf in placed.items()} == {
        name: "bfloat16" if name.startswith("kernel") else "float32" for name in SHAPES
    }
    # Four devices of one process: every byte once, although all may hold it.
    whole = sum(array.nbytes for array in tensors.values())
    assert sum(seen) == whole


def test_a_part_within_a_head_is_found_too():
    tree, tensors = given(np.float32)
    lazy, _ = leaves_of(TABLE, tensors, tree, "a file")
    for index in ((slice(1, 3), slice(3, 9), slice(5, 7)), (slice(0, 1), slice(0, 16), slice(31))):
        part = lazy["heads_kernel"].read(index)
        np.testing.assert_array_equal(part, tree["heads_kernel"][index])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_large_layers_are_copied_and_rounded_as_numpy_does(dtype):
    rng = np.random.default_rng(1)
    parts = [rng.standard_normal((600, 900), np.float32) for _ in range(2)]
    leaf = Leaf((2, 900, 600), ["a", "b"], parts, LINEAR.ours, True)
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    assert parts[0].size * 2 > LARGE
    read = leaf.read(dtype=kind)
    assert read.flags.c_contiguous
    number = Leaf((), ["n"], [np.array(1.5, np.float32)])
    assert number.read(dtype=kind).shape == () and np.asarray(number) == 1.5
    np.testing.assert_array_equal(read, np.stack([part.T for part in parts]).astype(kind))


def test_a_value_that_is_not_finite_is_refused_where_it_is_read():
    tree, tensors = given(np.float32)
    tensors["layers.2.table"][0, 0, 0] = np.nan
    lazy, _ = leaves_of(TABLE, tensors, tree, "a file")
    np.asarray(lazy["kernel"])
    lazy["table"].read((slice(0, 2),))
    with pytest.raises(WeightsError, match=r"a file: tensor layers\.2\.table has 1 non-finite"):
        np.asarray(lazy["table"])
