"""Trees of arrays as safetensors files: 16 bit, or int8 with a scale per channel.

A leaf's name is its path joined by `/`. An int8 leaf has its float32 scales
beside it as `<name>.scale`; reading multiplies them back, so that callers see
float32 parameters whatever the file holds.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import safetensors

from jvdm.errors import ConfigError, WeightsError
from jvdm.files import replacing
from jvdm.reading import checked, parse_json

SCALE_SUFFIX = ".scale"
MIN_QUANTIZED = 1024  # elements; smaller arrays save nothing and are often gains or biases
MIN_PER_SCALE = 32  # weights that share a scale; keeps the scales below 1/8 of the int8 bytes
INT8_MAX = 127
_INFINITE = {"float16": 0x7C00, "bfloat16": 0x7F80}  # the bits of infinity
MAX_HEADER = 100 * 1024 * 1024  # the format's own limit
POINTER = b"version https://git-lfs"
DEEPEST = 64  # folders of arrays inside one another

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U32": np.dtype(np.uint32),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {kind: name for name, kind in _DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a header says of an array."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


Tree = dict[str, Any]
StorageType = Literal["float16", "bfloat16", "float32"]


def save(
    path: str | Path,
    tree: Mapping[str, Any],
    *,
    quantize: Literal["int8"] | None = None,
    dtype: StorageType = "float16",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a nested dictionary of arrays, whole or not at all.

    Args:
        path: File to write; a folder that is missing is made.
        tree: Nested dictionary; leaves are numpy or JAX arrays.
        quantize: "int8" stores floating arrays of two or more dimensions and at
            least 1024 elements in 8 bits; the rest stays in `dtype`.
        dtype: Storage type of floating leaves; integers keep theirs.
        metadata: Text written into the file's header.

    Raises:
        WeightsError: If a value is not finite, also after rounding to `dtype`.
    """
    stored: dict[str, np.ndarray] = {}
    for name, value in flatten(tree).items():
        array = np.asarray(value)
        if not _is_floating(array):
            stored[name] = np.asarray(array, order="C")
            continue
        if quantize == "int8" and array.ndim >= 2 and array.size >= MIN_QUANTIZED:
            check_finite(path, name, array)
            stored[name], stored[name + SCALE_SUFFIX] = quantize_int8(array)
            continue
        with np.errstate(over="ignore"):
            stored[name] = np.asarray(array.astype(named_dtype(dtype)), order="C")
        check_finite(path, name, stored[name])
    save_stored(path, stored, metadata or {})


def save_stored(path: str | Path, arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Writes arrays by full name in their own number types, whole or not at all.

    One after the other is read and written, so that those of `jvdm.weights.leaves` need not be in
    memory together.

    Raises:
        ConfigError: If the file cannot be written there.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end, sizes = 0, {name: array.dtype.itemsize for name, array in arrays.items()}
    order = sorted(arrays, key=lambda name: (-sizes[name], name))  # so that all are aligned
    for name in order:
        kind, shape = _NAMES[arrays[name].dtype.newbyteorder("=")], list(arrays[name].shape)
        start, end = end, end + sizes[name] * math.prod(shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with replacing(Path(path)) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            array = np.asarray(arrays[name], arrays[name].dtype.newbyteorder("="), order="C")
            file.write(array.reshape(-1).view(np.uint8).data)


def load(path: str | Path) -> Tree:
    """Reads a file into a nested dictionary; floating leaves become float32.

    Raises:
        WeightsError: If the file is missing, truncated, a git-lfs pointer,
            corrupt, or holds a value that is not finite (named in the error).
    """
    flat = _dequantized(Path(path), load_stored(path))
    for name, array in flat.items():
        if _is_floating(array):
            check_finite(path, name, array)
    return unflatten(flat)


def load_stored(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the arrays as they are stored: by full name, in their own types, unchecked.

    Raises:
        WeightsError: If the file is missing, truncated, a git-lfs pointer or corrupt.
    """
    path = Path(path)
    _known_types(path)
    flat: dict[str, np.ndarray] = {}
    try:
        for name, raw in safetensors.deserialize(path.read_bytes()):
            flat[name] = np.frombuffer(raw["data"], _DTYPES[raw["dtype"]]).reshape(raw["shape"])
    except (safetensors.SafetensorError, ValueError) as error:
        raise _corrupt(path, str(error)) from error
    return flat


def map_stored(path: str | Path) -> dict[str, np.ndarray]:
    """Returns views of the arrays as they are stored: what is not looked at is never read.

    Raises:
        WeightsError: If the file is missing, truncated, a git-lfs pointer or corrupt.
    """
    path = Path(path)
    header, content = _known_types(path), np.memmap(path, np.uint8, "r")
    ends = [entry["data_offsets"][1] for entry in header.values()]
    start, views = content.size - max(ends, default=0), {}
    for name, entry in header.items():
        first, last = (start + offset for offset in entry["data_offsets"])
        dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
        if last - first != dtype.itemsize * math.prod(shape):
            raise _corrupt(path, f"{name} is not as long as its shape")
        views[name] = content[first:last].view(dtype).reshape(shape)
    return views


def _known_types(path: Path) -> dict[str, dict[str, Any]]:
    """Returns the header of a file whose number types are known."""
    header, _ = read_header(path)
    if other := {entry["dtype"] for entry in header.values()} - _DTYPES.keys():
        raise _corrupt(path, f"jvdm does not know the number type {listed(sorted(other))[:80]}")
    return header


def read_header(path: str | Path) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Reads what a file says it holds, and checks that its size agrees.

    Returns:
        For each stored name its `dtype`, `shape` and `data_offsets`; and the
        text metadata.

    Raises:
        WeightsError: If the file is missing, truncated, a git-lfs pointer or
            its header is corrupt.
    """
    path = Path(path)
    fix = "copy or download the file again"
    if not os.path.isfile(path):
        raise WeightsError(f"{path} does not exist", "a safetensors file was expected there", fix)
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(POINTER))
        if start == POINTER:
            why = "the weights themselves were never fetched"
            raise WeightsError(f"{path} is a git-lfs pointer", why, "run `git lfs pull`")
        length = int.from_bytes(start[:8], "little")
        if size < 8 or length > MAX_HEADER:
            raise _corrupt(path, f"header length {length} in a file of {size} bytes")
        if size < 8 + length:
            what = f"{path} is truncated: {size} bytes"
            raise WeightsError(what, f"its header alone needs {8 + length}", fix)
        file.seek(8)
        raw = file.read(length)
    try:
        header = checked(Mapping[str, Any], parse_json(raw, path, "header"), "it", path)
        metadata = checked(Mapping[str, str], header.pop("__metadata__", {}), "metadata", path)
        entries = checked(Mapping[str, Entry], header, "array", path).values()
    except ConfigError as error:
        raise _corrupt(path, f"unreadable header ({error.why})") from error
    _check_names(path, header)
    numbers = [number for entry in entries for number in (*entry.shape, *entry.data_offsets)]
    if not all(0 <= number < 2**60 for number in numbers):
        raise _corrupt(path, "its header has sizes below 0 or beyond any file")
    expected = 8 + length + max((entry.data_offsets[1] for entry in entries), default=0)
    if size < expected:
        what = f"{path} is truncated: {size} bytes"
        raise WeightsError(what, f"its header promises {expected}", fix)
    if size > expected:
        raise _corrupt(path, f"{size} bytes where the header promises {expected}")
    return header, metadata


def quantize_int8(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rounds to int8 with one scale per output channel.

    The last axis is the output channel. A scale is shared along the axes left
    of it, as few of them as hold 32 weights: the input axis of a matrix, of a
    stack of matrices `[L, in, out]` and of a convolution kernel, so that no
    scale spans two layers.

    Args:
        array: Floating array with at least two dimensions.

    Returns:
        int8 values of the same shape, and float32 scales with size 1 on the
        shared axes; their product differs from `array` by half a scale at most.
    """
    wide = np.asarray(array, np.float32)
    axis = wide.ndim - 2
    while axis > 0 and math.prod(wide.shape[axis:-1]) < MIN_PER_SCALE:
        axis -= 1
    shared = tuple(range(axis, wide.ndim - 1))
    largest = np.abs(wide).max(axis=shared, keepdims=True)
    scale = np.where(largest > 0, largest / INT8_MAX, 1).astype(np.float32)
    return np.rint(wide / scale).clip(-INT8_MAX, INT8_MAX).astype(np.int8), scale


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `{"a/b": leaf}` for `{"a": {"b": leaf}}`, sorted by name."""
    from flax.traverse_util import flatten_dict  # not at the top: headers are read without JAX

    return dict(sorted(flatten_dict(tree, sep="/").items()))


def unflatten(flat: Mapping[str, Any]) -> Tree:
    """Returns the nested dictionary whose `flatten` is `flat`."""
    from flax.traverse_util import unflatten_dict

    return unflatten_dict(flat, sep="/")


def check_floating(path: str | Path, tree: Mapping[str, Any]) -> None:
    """Refuses parameters of whole numbers or truth values: nothing trains or rounds to them.

    Raises:
        WeightsError: If there are any, with their names and types.
    """
    wrong = [f"{name} is {a.dtype}" for name, a in flatten(tree).items() if not _is_floating(a)]
    if wrong:
        fix = "convert or export the weights again"
        raise WeightsError(f"{path}: {listed(wrong)}", "parameters are floating numbers", fix)


def check_finite(path: str | Path, name: str, array: np.ndarray) -> None:
    """Checks that all values are finite.

    Raises:
        WeightsError: If one is infinite or not a number; it names the array.
    """
    if not _all_finite(array):
        with np.errstate(invalid="ignore"):  # some kinds of NaN are said to be invalid
            count = array.size - int(np.count_nonzero(np.isfinite(array)))
        what = f"{path}: tensor {name} has {count} non-finite values of {array.size}"
        why = "a video made with them would be black or noise"
        raise WeightsError(what, why, "train, convert or download these weights again")


def _all_finite(array: np.ndarray) -> bool:
    """Whether all values are finite: the bits of one that is not are the largest there are.

    NumPy's own test of bfloat16 takes fifteen times as long (67 ms against 4.5 for 28 MB).
    """
    infinite = _INFINITE.get(array.dtype.name)
    if infinite is None or not array.size:
        return bool(np.isfinite(array).all())
    bits = array.view(f"u{array.itemsize}")
    sign = 1 << 8 * array.itemsize - 1
    return int((bits & bits.dtype.type(sign - 1)).max()) < infinite


def match(
    path: str | Path,
    tree: Mapping[str, Any],
    expected: Mapping[str, Any],
    fix: str = "use the model.json that was written with these weights",
) -> None:
    """Checks that a file holds exactly the arrays that a model has.

    Args:
        path: File that `tree` came from, for the message.
        tree: What was read.
        expected: Same nesting; leaves have a `shape`.
        fix: What to do if they differ, for the message.

    Raises:
        WeightsError: If a name is missing or unused, or a shape differs.
    """
    found = {name: tuple(np.shape(leaf)) for name, leaf in flatten(tree).items()}
    needed = {name: tuple(leaf.shape) for name, leaf in flatten(expected).items()}
    if found == needed:
        return
    missing = sorted(needed.keys() - found.keys())
    unused = sorted(found.keys() - needed.keys())
    wrong = sorted(n for n in found.keys() & needed.keys() if found[n] != needed[n])
    parts = [f"{len(needed)} arrays expected, {len(found)} found"]
    if missing:
        parts.append(f"missing: {listed(missing)}")
    if unused:
        parts.append(f"not in the model: {listed(unused)}")
    if wrong:
        shapes = [f"{name} is {found[name]}, needs {needed[name]}" for name in wrong]
        parts.append(f"wrong shape: {listed(shapes)}")
    raise WeightsError(f"{path} holds another model", ". ".join(parts), fix)


def listed(names: list[str], count: int = 10) -> str:
    """Lists the first names and how many more there are."""
    rest = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + rest


def _check_names(path: Path, header: Mapping[str, Any]) -> None:
    """Refuses names that no tree of arrays has."""
    if any(name.count("/") > DEEPEST for name in header):
        raise _corrupt(path, f"an array is deeper than {DEEPEST} folders")
    folders = {name[:end] for name in header for end, sign in enumerate(name) if sign == "/"}
    if both := sorted(folders & header.keys()):
        raise _corrupt(path, f"{listed(both)[:200]} is an array and a folder of arrays")


def _dequantized(path: Path, flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns float32 for every floating or int8-with-scale entry.

    Raises:
        WeightsError: If scales do not belong to what is beside them.
    """
    result = {}
    for name, array in flat.items():
        if name.endswith(SCALE_SUFFIX) and name.removesuffix(SCALE_SUFFIX) in flat:
            continue
        scale = flat.get(name + SCALE_SUFFIX)
        if scale is not None:
            stored = (array.dtype, scale.dtype) == (np.int8, np.float32)
            if not stored or not _is_shared(scale.shape, array.shape):
                what = f"{array.dtype}{array.shape} with scales {scale.dtype}{scale.shape}"
                raise _corrupt(path, f"{name} is {what}, not int8 with float32 scales of its axes")
            with np.errstate(over="ignore", invalid="ignore"):
                result[name] = array.astype(np.float32) * scale
        elif _is_floating(array):
            with np.errstate(over="ignore"):  # what is beyond float32 is refused as not finite
                result[name] = array.astype(np.float32)
        else:
            result[name] = array
    return result


def _is_shared(scales: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether scales have each axis of an array, or 1 in its place."""
    same = len(scales) == len(shape)
    return same and all(one in (1, size) for one, size in zip(scales, shape, strict=True))


def _is_floating(array: np.ndarray) -> bool:
    """Whether the array holds floating numbers, bfloat16 included."""
    return array.dtype.kind == "f" or array.dtype == _DTYPES["BF16"]


def named_dtype(name: str) -> np.dtype:
    """Returns the numpy type called `name`, bfloat16 included."""
    return _DTYPES["BF16"] if name == "bfloat16" else np.dtype(name)


def _corrupt(path: Path, detail: str) -> WeightsError:
    """Returns the error for a file that is not readable as safetensors."""
    why = f"not a readable safetensors file: {detail}"
    return WeightsError(f"{path} is corrupt", why, "copy or download the file again")
