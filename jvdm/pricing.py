"""What a run will need, before anything is made: rows, operations and bytes.

The program of a row is traced for the sizes that were asked for, and its products are counted
(`jvdm.products`); nothing is computed and nothing allocated.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jvdm import samplers
from jvdm.arrays import Latents, PyTree
from jvdm.errors import DeviceMemoryError
from jvdm.machine import free_device_memory, free_memory
from jvdm.products import product_bytes, product_flops
from jvdm.samplers import TimestepMatrix
from jvdm.system import System

_PARTS = ("text", "model", "vae", "process", "prediction", "solver", "guidance", "policy", "tiles")
UNPRICED_OPERATIONS = 3e12  # take less than a minute on a single core
WORTH_SAYING = 60.0  # seconds
SHARE_OF_PEAK = 0.5  # of the speed of a large product, that a whole row reaches
_SIDE = 2048  # of that product


class Size(NamedTuple):
    """Videos, and their sizes in pixels."""

    videos: int
    num_frames: int
    height: int
    width: int

    def __str__(self) -> str:
        videos = "1 video" if self.videos == 1 else f"{self.videos:,} videos"
        return f"{videos} of {self.num_frames} frames of {self.height}x{self.width}"


class Price(NamedTuple):
    """What a run needs, within a tenth of what XLA takes where products are large.

    Attributes:
        rows: Rows in which the network is called.
        operations: Of the products in all rows.
        device_bytes: Latents, the largest product and what comes of it, over all devices.
    """

    rows: int
    operations: float
    device_bytes: int


def price(system: System, size: Size, matrix: TimestepMatrix) -> Price:
    """Returns what it takes to make videos.

    Args:
        system: The system, with the numbers of the run in it.
        size: What is made.
        matrix: Its timestep matrix.
    """
    vae = system.vae
    frames, (rows, columns) = vae.latent_frames(size.num_frames), vae.latent_size(*size[2:])
    shape = (size.videos, frames, rows, columns, vae.latent_channels)
    calls = samplers.cost(matrix).calls
    leaves, structure = jax.tree.flatten(system.only(*_PARTS))
    values = tuple(jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in leaves)
    operations, largest = _row(structure, values, shape, matrix.window)
    # The latents, the noise that they began as, and what a row makes of them.
    return Price(calls, calls * operations, 3 * 4 * math.prod(shape) + 2 * largest)


@functools.lru_cache(maxsize=256)
def _row(
    structure: Any, values: tuple[Any, ...], shape: tuple[int, ...], window: int
) -> tuple[float, int]:
    """Returns the operations of a row, and the bytes of the largest product until it ends."""
    system: System = jax.tree.unflatten(structure, values)
    params = parameter_shapes(system)
    ids = jax.tree.map(jnp.asarray, system.text.read(("",))[0])
    count = shape[0] * len(system.sampling.guidance.branches)
    ids = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype), ids)
    matrix = samplers.synchronous(jnp.array([1.0, 0.0]), shape[1])
    matrix = dataclasses.replace(matrix, window=window)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)

    def begin(system: System, params: PyTree, ids: PyTree) -> PyTree:
        return system.conditions(params, ids), system.start(shape, window)

    def row(system: System, params: PyTree, told: tuple[Any, PyTree], x: Latents) -> Latents:
        conditions, carry = told
        solver = system.sampling.solver
        state = samplers.start(solver, x, jax.random.key(0), carry)
        denoise = system.denoiser(params, conditions)
        return samplers.advance(denoise, solver, system.process, matrix, state, 0, 1).x

    first = (system, params, ids)
    second = (system, params, jax.eval_shape(begin, *first), x)
    largest = max(product_bytes(begin, *first), product_bytes(row, *second))
    return product_flops(row, *second), largest


def parameter_shapes(system: System) -> PyTree:
    """Returns the shapes of the parameters of a system's networks."""
    return dict(_shapes(system.only("text", "model", "vae")))


@functools.lru_cache(maxsize=16)
def _shapes(networks: System) -> PyTree:
    return jax.eval_shape(networks.init, jax.random.key(0))


def check(system: System, size: Size, matrix: TimestepMatrix, devices: int = 1) -> tuple[str, ...]:
    """Refuses a run that this machine cannot hold; returns what the user should know of it.

    Args:
        system: The system, with the numbers of the run in it.
        size: What is made.
        matrix: Its timestep matrix.
        devices: Devices over which the videos are split.

    Raises:
        DeviceMemoryError: With what is needed, what is there, and the largest that fits.
    """
    device = jax.local_devices()[0]
    free = free_memory(), free_device_memory(device)

    def lacking(size: Size) -> tuple[int, str, int] | None:
        """Returns the bytes that are needed where too few are free, if so."""
        least = host_bytes(size)
        if free[0] is not None and least > free[0]:
            return least, "the host", free[0]
        least = price(system, size, matrix).device_bytes // devices
        if free[1] is not None and least > free[1]:
            return least, device.device_kind, free[1]
        return None

    if found := lacking(size):
        rows, columns = (stride * system.model.patch for stride in system.vae.strides[1:])
        fits = largest_that_fits(size, (rows, columns), lambda size: lacking(size) is None)
        raise DeviceMemoryError(
            f"{size}: about {_bytes(found[0])} of memory are needed",
            f"{found[1]} has {_bytes(found[2])} free",
            f"the largest that fits: {fits}" if fits else "use fewer frames",
        )
    need = price(system, size, matrix)
    if need.operations < UNPRICED_OPERATIONS:
        return ()
    seconds = need.operations / (devices * SHARE_OF_PEAK * _speed(device.platform))
    if seconds < WORTH_SAYING:
        return ()
    each = f"{need.rows:,} rows of {need.operations / need.rows:.1e} operations"
    return (f"denoising will take about {_duration(seconds)}: {each}",)


def host_bytes(size: Size) -> int:
    """Returns the bytes of all frames, twice: they are decoded piece by piece and joined."""
    return 2 * 3 * math.prod(size)


def largest_that_fits(
    size: Size, cells: tuple[int, int], fits: Callable[[Size], bool]
) -> Size | None:
    """Returns fewer videos of this size, or else one smaller video; None if none fits.

    Args:
        size: What does not fit.
        cells: Of which height and width are multiples.
        fits: Says whether another size fits; what is smaller than one that fits, fits.
    """
    rows, columns = size.height // cells[0], size.width // cells[1]

    def scaled(part: int) -> Size:
        height, width = (max(n * part // max(rows, columns), 1) for n in (rows, columns))
        return size._replace(videos=1, height=height * cells[0], width=width * cells[1])

    def fewer(part: int) -> Size:
        return size._replace(videos=part)

    make, low, high = fewer, 0, size.videos
    if not fits(fewer(1)):
        make, high = scaled, max(rows, columns)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(make(middle)) else (low, middle)
    return make(low) if low else None


@functools.cache
def _speed(platform: str) -> float:
    """Measures the operations per second of a large product."""
    one = jnp.ones((_SIDE, _SIDE), jnp.float32 if platform == "cpu" else jnp.bfloat16)
    product, seconds = jax.jit(jnp.matmul), []
    for _ in range(3):  # the first one compiles
        started = time.perf_counter()
        jax.block_until_ready(product(one, one))
        seconds.append(time.perf_counter() - started)
    return 2.0 * _SIDE**3 / min(seconds)


def _bytes(count: int | float) -> str:
    """Returns a number of bytes for people: 11.4 PB."""
    thousands = min(int(math.log10(max(count, 1)) // 3), 5)
    return f"{count / 1000**thousands:.3g} {('B', 'kB', 'MB', 'GB', 'TB', 'PB')[thousands]}"


def _duration(seconds: int | float) -> str:
    """Returns a time for people: 12 minutes."""
    for name, length in (("years", 31557600), ("days", 86400), ("hours", 3600)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {name}"
    return f"{max(seconds / 60, 1):.3g} minutes"
