"""Arrays of networks that lie in files, and are read where they are needed: whole, or a part.

A process that holds a shard of an array reads the bytes of that shard alone. Whatever a layout
does to the axes, the part of the published array that a shard is made of is found by sending the
places of every axis through the layout.
"""

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jvdm.weights.safetensors import (
    Tree,
    check_finite,
    check_floating,
    map_stored,
    match,
    unflatten,
)

Index = tuple[slice, ...]
COLUMNS = 16  # copied at a time where axes change: 2.0 GB/s against 0.8 for all at once (one core)
LARGE = 2**20  # values; what is smaller is copied by one thread
THREADS = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
    """An array of a network, made of arrays that lie elsewhere; NumPy reads it like one.

    Attributes:
        shape: Of the network's array.
        names: Names of the arrays that it is made of: one, or one for each layer.
        parts: These arrays. Of views of a file, what is not asked for is not read.
        turn: What makes one of ours of one of these; it changes axes only.
        stacked: Whether they are layers, along a leading axis.
        where: Where they come from, for errors.
    """

    shape: tuple[int, ...]
    names: Sequence[str]
    parts: Sequence[Any]
    turn: Callable[[np.ndarray], np.ndarray] = lambda x: x
    stacked: bool = False
    where: Any = ""

    @property
    def dtype(self) -> np.dtype:
        """The number type of the parts."""
        return np.result_type(*(part.dtype for part in self.parts))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Reads all of it; `np.asarray` calls this."""
        del copy  # what is read is new, or a view that nobody may write to
        return self.read(dtype=dtype)

    def read(self, index: Index | None = None, dtype: Any = None) -> np.ndarray:
        """Reads a part of the array.

        Args:
            index: Which part, along every axis in steps of 1; all if left out.
            dtype: Number type to round to; that of the parts if left out.

        Raises:
            WeightsError: If a value that was read is not finite.
        """
        kind = self.dtype if dtype is None else np.dtype(dtype)
        bounds = [cut.indices(size)[:2] for cut, size in zip(index or (), self.shape, strict=False)]
        bounds += [(0, size) for size in self.shape[len(bounds) :]]
        layers = range(*bounds[0]) if self.stacked else range(1)
        inner = tuple(slice(*ends) for ends in bounds[self.stacked :])
        box = self._box(inner)
        if not self.stacked:
            x = self._turned(0, inner, box, kind)
            return x if x.flags.c_contiguous else _copy(x, np.empty(x.shape, kind))
        out = np.empty([end - start for start, end in bounds], kind)

        def fill(place: int) -> None:
            _copy(self._turned(layers[place], inner, box, kind), out[place])

        threads = THREADS if out.size > LARGE else 1
        with concurrent.futures.ThreadPoolExecutor(min(threads, os.cpu_count() or 1)) as pool:
            for _ in pool.map(fill, range(len(layers))):
                pass
        return out

    def _turned(self, layer: int, inner: Index, box: Index, kind: np.dtype) -> np.ndarray:
        """Returns a part of one of ours: a view, or as little as its layout copies."""
        array = self.parts[layer]
        read = np.asarray(array[box])
        check_finite(self.where, self.names[layer], read)
        read = read.astype(kind, copy=False)
        if read.shape != array.shape:  # in its place in a whole, whose rest takes no memory
            read, held = np.empty(array.shape, kind), read
            read[box] = held
        return np.asarray(self.turn(read)[inner])  # of no axes it would be a number

    def _box(self, inner: Index) -> Index:
        """Returns the part of one of theirs that a part of one of ours is made of."""
        shape = self.parts[0].shape
        if all(cut == slice(0, size) for cut, size in zip(inner, self._inner_shape, strict=True)):
            return (slice(None),) * len(shape)
        box = []
        for axis, size in enumerate(shape):
            places = np.arange(size, dtype=np.int32).reshape(-1, *(1,) * (len(shape) - axis - 1))
            seen = self.turn(np.broadcast_to(places, shape))[inner]
            box.append(slice(int(seen.min()), int(seen.max()) + 1) if seen.size else slice(0))
        return tuple(box)

    @property
    def _inner_shape(self) -> tuple[int, ...]:
        return self.shape[1:] if self.stacked else self.shape


def _copy(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Writes an array into another of its shape and type, some columns at a time."""
    if x.itemsize == 2:
        x, bits = x.view(np.uint16), out.view(np.uint16)
    else:
        bits = out
    columns = x.shape[-1] if x.flags.c_contiguous or not x.ndim else COLUMNS
    for first in range(0, x.shape[-1] if x.ndim else 1, max(columns, 1)):
        bits[..., first : first + columns] = x[..., first : first + columns]
    return out


def own_leaves(path: Path, expected: Mapping[str, Any], fix: str) -> Tree:
    """Returns the arrays of a file as a network has them, to be read as they are needed.

    Args:
        path: Safetensors file whose names are paths of parameters.
        expected: The parameters of the network; leaves have a `shape`.
        fix: What to do if they are others, for the error.

    Raises:
        WeightsError: If the file is broken, or they are others, or no floating numbers.
    """
    arrays = map_stored(path)
    match(path, unflatten(arrays), expected, fix)
    check_floating(path, arrays)
    return unflatten(
        {name: Leaf(array.shape, [name], [array], where=path) for name, array in arrays.items()}
    )
