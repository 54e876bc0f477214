"""Trees survive the file; broken files are named, never half read."""

import errno
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy as library

from jvdm.errors import ConfigError, JvdmError, WeightsError
from jvdm.weights import safetensors


def tree(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "block": {
            "attention": {"kernel": rng.normal(size=(4, 48, 32)).astype(np.float32)},
            "norm": {"scale": rng.normal(size=(48,)).astype(np.float32)},
        },
        "conv": jnp.asarray(rng.normal(size=(3, 3, 16, 24)), jnp.float32),
        "steps": np.arange(5, dtype=np.int32),
    }


def assert_close(left, right, tolerance):
    left, right = safetensors.flatten(left), safetensors.flatten(right)
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_allclose(left[name], right[name], rtol=tolerance, atol=1e-30)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 0), ("float16", 5e-4), ("bfloat16", 4e-3)]
)
def test_a_tree_comes_back_within_the_storage_type(tmp_path, dtype, tolerance):
    safetensors.save(tmp_path / "a.safetensors", tree(), dtype=dtype)
    loaded = safetensors.load(tmp_path / "a.safetensors")
    assert_close(loaded, tree(), tolerance)
    assert loaded["conv"].dtype == np.float32
    assert loaded["steps"].dtype == np.int32


def test_bfloat16_values_survive_bit_for_bit(tmp_path):
    values = {"x": np.arange(-8, 8).astype(ml_dtypes.bfloat16)}
    safetensors.save(tmp_path / "a.safetensors", values, dtype="bfloat16")
    np.testing.assert_array_equal(safetensors.load(tmp_path / "a.safetensors")["x"], values["x"])


def test_a_scalar_stays_one_and_a_transposed_matrix_keeps_its_values(tmp_path):
    values = {"one": np.float32(0.5), "count": np.int32(3), "turned": np.eye(3, 2, 1).T}
    for dtype in ("float32", "float16", "bfloat16"):
        safetensors.save(tmp_path / "a.safetensors", values, dtype=dtype)
        loaded = safetensors.load(tmp_path / "a.safetensors")
        assert {name: leaf.shape for name, leaf in loaded.items()} == {
            "one": (),
            "count": (),
            "turned": (2, 3),
        }
        assert (loaded["one"], loaded["count"]) == (0.5, 3)
        np.testing.assert_array_equal(loaded["turned"], values["turned"])


def test_int8_files_are_a_quarter_and_equal_tree_means_equal_bytes(tmp_path):
    large = {"w": np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)}
    for name in ("a", "b"):
        safetensors.save(tmp_path / f"{name}.safetensors", large, quantize="int8")
    safetensors.save(tmp_path / "c.safetensors", large, dtype="float32")
    size = {name: (tmp_path / f"{name}.safetensors").stat().st_size for name in "ac"}
    assert size["a"] < 0.27 * size["c"]
    same = [(tmp_path / f"{name}.safetensors").read_bytes() for name in "ab"]
    assert same[0] == same[1]


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
    st.lists(st.integers(1, 40), min_size=2, max_size=5), st.integers(0, 99), st.booleans()
)
def test_int8_errs_by_half_a_scale_of_its_own_channel(shape, seed, with_zeros):
    array = np.random.default_rng(seed).normal(size=shape[-3:]).astype(np.float32)
    array *= np.float32(10.0) ** (np.arange(array.shape[-1]) % 5)  # channels of unlike size
    if with_zeros:
        array[..., 0] = 0
    values, scale = safetensors.quantize_int8(array)
    assert values.dtype == np.int8
    assert scale.shape[-1] == array.shape[-1]
    assert np.all(np.abs(values * scale - array) <= scale * 0.50001)


def test_stacked_layers_do_not_share_scales():
    layers = np.random.default_rng(0).normal(size=(3, 64, 8)).astype(np.float32)
    layers[1] *= 100
    alone = safetensors.quantize_int8(layers[0])
    together = safetensors.quantize_int8(layers)
    np.testing.assert_array_equal(together[0][0], alone[0])
    assert together[1].shape == (3, 1, 8)


def test_small_and_one_dimensional_arrays_are_not_quantised(tmp_path):
    small = {"bias": np.linspace(0, 1, 2048, dtype=np.float32), "w": np.eye(8, dtype=np.float32)}
    safetensors.save(tmp_path / "a.safetensors", small, quantize="int8")
    header, _ = safetensors.read_header(tmp_path / "a.safetensors")
    assert {entry["dtype"] for entry in header.values()} == {"F16"}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.save(path, tree(), metadata={"of": "a test"})
    return path


def broken(path, message):
    with pytest.raises(WeightsError, match=message) as caught:
        safetensors.load(path)
    assert caught.value.exit_code == 2
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path):
    broken(tmp_path / "none.safetensors", "does not exist")


def test_truncated_file_names_expected_and_real_bytes(file):
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    broken(file, f"truncated: {len(whole) - 100} bytes; its header promises {len(whole)}")


def test_file_cut_inside_the_header(file):
    file.write_bytes(file.read_bytes()[:40])
    broken(file, "truncated: 40 bytes")


def test_pointer_file(file):
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    broken(file, "git-lfs pointer.*git lfs pull")


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 64, b"\x04" + b"\0" * 7 + b"{nope"])
def test_corrupt_header(file, content):
    file.write_bytes(content)
    broken(file, "corrupt|truncated")


def test_bytes_after_the_end(file):
    file.write_bytes(file.read_bytes() + b"more")
    broken(file, "corrupt")


def test_non_finite_tensor_is_named(file):
    safetensors.save(file, {"a": {"fine": np.ones(4)}})
    header, _ = safetensors.read_header(file)
    start, _ = header["a/fine"]["data_offsets"]
    raw = bytearray(file.read_bytes())
    offset = len(raw) - 8 + start
    raw[offset : offset + 2] = np.float16(np.nan).tobytes()
    file.write_bytes(raw)
    broken(file, "tensor a/fine has 1 non-finite values of 4")


def test_values_that_overflow_the_storage_type_are_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(WeightsError, match="tensor w"):
        safetensors.save(tmp_path / "a.safetensors", {"w": np.array([1e6])}, dtype="float16")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_with_a_name(tmp_path):
    class Full:
        shape, dtype = (2,), np.dtype(np.float32)

        def __array__(self, dtype=None, copy=None):
            raise OSError(errno.ENOSPC, "no space left")

    (tmp_path / "w.safetensors").write_text("old")
    with pytest.raises(ConfigError, match="w.safetensors cannot be written; the disk is full"):
        safetensors.save_stored(tmp_path / "w.safetensors", {"a": np.ones(9), "w": Full()}, {})
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_files_are_as_the_library_reads_and_writes_them(tmp_path):
    kinds = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.uint8, np.bool_]
    arrays: dict[str, Any] = {
        f"a/{np.dtype(kind).name}": np.ones((3, 1, 5), kind) for kind in kinds
    }
    arrays |= {"é": np.float32(2).reshape(()), "none": np.zeros((0, 4)), "turned": np.eye(3, 5).T}
    arrays["big"] = np.arange(6, dtype=">f4")
    path, again = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    safetensors.save_stored(path, arrays, {"of": "a test"})
    whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    library.save_file(whole, again, {"of": "a test"})
    assert path.stat().st_size == again.stat().st_size
    found = library.load_file(path)
    assert found.keys() == arrays.keys()
    for name, array in library.load_file(again).items():
        np.testing.assert_array_equal(found[name], array, err_msg=name, strict=True)
    assert safetensors.read_header(path)[1] == {"of": "a test"}


def test_match_lists_what_differs(file):
    loaded = safetensors.load(file)
    safetensors.match(file, loaded, loaded)
    del loaded["conv"]
    with pytest.raises(JvdmError, match="not in the model: conv"):
        safetensors.match(file, safetensors.load(file), loaded)
    with pytest.raises(JvdmError, match="missing: conv"):
        safetensors.match(file, loaded, safetensors.load(file))
    wrong = safetensors.load(file)
    wrong["steps"] = np.zeros(6)
    with pytest.raises(JvdmError, match=r"steps is \(5,\), needs \(6,\)"):
        safetensors.match(file, loaded | {"conv": wrong["conv"]}, wrong)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_number_of_16_bits_is_finite_or_not(dtype):
    every = np.arange(2**16, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(every)
    safetensors.check_finite("here", "x", every[finite].reshape(2, -1).T)
    for array in every[~finite].reshape(-1, 1):
        with pytest.raises(WeightsError, match="1 non-finite values of 1"):
            safetensors.check_finite("here", "x", array)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -np.nan])
def test_one_number_of_32_bits_that_is_not_finite_is_found(value):
    extremes = np.finfo(np.float32)
    array = np.array([extremes.max, extremes.min, -0.0, extremes.tiny, 1.0], np.float32)
    safetensors.check_finite("here", "x", array)
    array[3] = value
    with pytest.raises(WeightsError, match="1 non-finite values of 5"):
        safetensors.check_finite("here", "x", array)
    safetensors.check_finite("here", "x", array[:0])
