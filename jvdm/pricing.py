"""What a run will need, before anything is made: rows, operations and bytes.

The program of a row is traced for the sizes that were asked for, and its products are counted
(`jvdm.products`); what is remembered from row to row, such as keys and values, is counted array by
array. Nothing is computed and nothing allocated.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict, freeze

from jvdm import samplers
from jvdm.arrays import Latents, PyTree
from jvdm.attention import CachedCausal, LevelBank
from jvdm.errors import DeviceMemoryError
from jvdm.machine import free_device_memory, free_memory
from jvdm.products import device_bytes, product_bytes, product_flops
from jvdm.samplers import TimestepMatrix
from jvdm.samplers.modalities import each, every
from jvdm.samplers.sampler import shared_rows
from jvdm.system import OF_A_ROW, System

_PARTS = ("text", "vision", "model", "vae", *OF_A_ROW)
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


Matrix = TimestepMatrix | Mapping[str, TimestepMatrix]
ShapeOf = Callable[[Size], Mapping[str, tuple[int, ...]]]


class Price(NamedTuple):
    """What a run needs, within a tenth of what XLA takes where products are large.

    Attributes:
        rows: Rows in which the network is called.
        operations: Of the products in all rows.
        split_bytes: Latents, the solver's history, the largest product and what comes of it, over
            all devices.
        cache_bytes: What the network remembers from row to row, such as keys and values of every
            layer, branch and kept latent frame. Every device holds all of it.
        made_bytes: Of that, what a row makes anew while it reads the old one; a cache of keys and
            values is written where it lies.
    """

    rows: int
    operations: float
    split_bytes: int
    cache_bytes: int
    made_bytes: int

    def on_device(self, devices: int = 1) -> int:
        """Returns the bytes that a device needs."""
        return self.split_bytes // devices + self.cache_bytes + self.made_bytes


class Held(NamedTuple):
    """Bytes that a stream holds between two chunks, however long it is.

    Attributes:
        window: Latent frames in work and finished ones before them, with the solver's history.
        cache: What the network remembers, such as keys and values.
        decoder: What the autoencoder remembers.
    """

    window: int
    cache: int
    decoder: int


def price(system: System, size: Size, matrix: Matrix, shape_of: ShapeOf | None = None) -> Price:
    """Returns what it takes to make videos.

    Args:
        system: The system, with the numbers of the run in it.
        size: What is made.
        matrix: Its timestep matrix, or that of every modality.
        shape_of: Sizes of the latents of every modality, by those of the videos; a system of one
            has them from its autoencoder.
    """
    shape: Any = latents_of(system, size) if shape_of is None else shape_of(size)
    window: Any = _frozen(each(lambda matrix: matrix.window, matrix))
    structure, values = _structure(system)
    operations, largest = _row(structure, values, shape, window)
    state = _first_state(structure, values, shape, window)
    # The latents, the noise that they began as, and what a row makes of them.
    latents = 3 * device_bytes(_empty(shape)) + 2 * device_bytes(state.solver)
    calls = _calls(matrix)
    kept = device_bytes(state.carry)
    made = kept if _cache_of(system) is None else 0
    return Price(calls, calls * operations, latents + 2 * largest, kept, made)


def held(system: System, size: Size) -> Held:
    """Returns what a stream holds.

    Args:
        system: The system, with the numbers of the run in it.
        size: One video of as many frames as the stream has in its window.
    """
    shape = latents_of(system, size)
    state, decoder = _first_state(*_structure(system), shape, shape[1]), 0
    if hasattr(system.vae, "decode_chunk"):
        decoder = _kept_by_decoder(system.vae, freeze(stored_shapes(system)["vae"]), shape)
    cache = device_bytes(state.carry)
    # Beside the state of the loop: the key that noise is drawn from, and the chunks so far.
    window = device_bytes((state, state.key, jax.ShapeDtypeStruct((), jnp.int32))) - cache
    return Held(window, cache, decoder)


def latents_of(system: System, size: Size) -> tuple[int, ...]:
    """Returns the sizes of the latents of videos: `B F H W C`."""
    vae = system.vae
    cells = vae.latent_size(size.height, size.width)
    return (size.videos, vae.latent_frames(size.num_frames), *cells, vae.latent_channels)


def _frozen(value: Any) -> Any:
    """Returns what is by modality as a key of a cache."""
    return FrozenDict(value) if isinstance(value, Mapping) else value


def _empty(shape: Any) -> Any:
    """Returns latents of these sizes, or those of every modality, without values."""
    return each(lambda size: jax.ShapeDtypeStruct(tuple(size), jnp.float32), shape)


def _calls(matrix: Matrix) -> int:
    """Returns the number of rows in which the network is called, for any of its modalities."""
    if not isinstance(matrix, Mapping):
        return samplers.cost(matrix).calls
    called = np.zeros(shared_rows(matrix), bool)
    for one in matrix.values():
        level = np.asarray(samplers.times(one))
        called |= (level[1:] != level[:-1]).any(1) | np.asarray(one.write).any(1)
    return int(called.sum())


def _structure(system: System) -> tuple[Any, tuple[Any, ...]]:
    """Returns what a program of the system depends on: its structure, and shapes of numbers."""
    leaves, structure = jax.tree.flatten(system.only(*_PARTS))
    values = (jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in leaves)
    return structure, tuple(values)


@functools.lru_cache(maxsize=256)
def _first_state(
    structure: Any, values: tuple[Any, ...], shape: Any, window: Any
) -> samplers.State:
    """Returns the shapes of the state of a run."""

    def start(system: System, x: Any) -> samplers.State:
        solver = system.sampling.solver
        return samplers.start(solver, x, jax.random.key(0), system.start(shape, window))

    system = jax.tree.unflatten(structure, values)
    return jax.eval_shape(start, system, _empty(shape))


@functools.lru_cache(maxsize=16)
def _kept_by_decoder(vae: Any, params: PyTree, shape: tuple[int, ...]) -> int:
    """Returns the bytes that an autoencoder remembers of the latents before."""

    def decode(params: PyTree, latents: Latents) -> PyTree:
        return vae.apply({"params": params}, latents, None, method="decode_chunk")[1]

    return device_bytes(jax.eval_shape(decode, params, _empty(shape)))


@functools.lru_cache(maxsize=256)
def _row(structure: Any, values: tuple[Any, ...], shape: Any, window: Any) -> tuple[float, int]:
    """Returns the operations of a row, and the bytes of the largest product until it ends."""
    system: System = jax.tree.unflatten(structure, values)
    params = parameter_shapes(system)
    ids = jax.tree.map(jnp.asarray, system.text.read(("",))[0])
    videos = jax.tree.leaves(_empty(shape))[0].shape[0]
    count = videos * len(system.branches)
    ids = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype), ids)

    def one_step(shape: Any, window: int) -> TimestepMatrix:
        matrix = samplers.synchronous(jnp.array([1.0, 0.0]), shape[1])
        return dataclasses.replace(matrix, window=window)

    matrix = each(one_step, shape, every(window, shape))
    state = _first_state(structure, values, shape, window)

    def begin(system: System, params: PyTree, ids: PyTree) -> PyTree:
        return system.conditions(params, ids)

    def row(system: System, params: PyTree, told: PyTree, state: samplers.State) -> Any:
        denoise, solver = system.denoiser(params, told), system.sampling.solver
        return samplers.advance(denoise, solver, system.process, matrix, state, 0, 1).x

    first = (system, params, ids)
    second = (system, params, jax.eval_shape(begin, *first), state)
    largest = max(product_bytes(begin, *first), product_bytes(row, *second))
    return product_flops(row, *second), largest


def parameter_shapes(system: System) -> PyTree:
    """Returns the shapes of the parameters of a system's networks."""
    return dict(_shapes(system.only(*system.networks)))


def stored_shapes(system: System) -> PyTree:
    """Returns the same as weights hold them: statistics of latents are no parameters."""
    shapes = parameter_shapes(system)
    return {**shapes, "vae": shapes["vae"].params}


@functools.lru_cache(maxsize=16)
def _shapes(networks: System) -> PyTree:
    return jax.eval_shape(networks.init, jax.random.key(0))


def check(
    system: System,
    size: Size,
    matrix: Matrix,
    devices: int = 1,
    shape_of: ShapeOf | None = None,
) -> tuple[str, ...]:
    """Refuses a run that this machine cannot hold; returns what the user should know of it.

    Args:
        system: The system, with the numbers of the run in it.
        size: What is made.
        matrix: Its timestep matrix, or that of every modality.
        devices: Devices over which the videos are split.
        shape_of: As of `price`.

    Raises:
        DeviceMemoryError: With what is needed, what is there, and the largest that fits.
    """

    def needed(system: System, size: Size) -> int:
        return price(system, size, matrix, shape_of).on_device(devices)

    _fit(system, size, needed)
    need = price(system, size, matrix, shape_of)
    if need.operations < UNPRICED_OPERATIONS:
        return ()
    platform = jax.local_devices()[0].platform
    seconds = need.operations / (devices * SHARE_OF_PEAK * _speed(platform))
    if seconds < WORTH_SAYING:
        return ()
    each = f"{need.rows:,} rows of {need.operations / need.rows:.1e} operations"
    return (f"denoising will take about {_duration(seconds)}: {each}",)


def check_stream(system: System, size: Size, matrix: TimestepMatrix, kept: int = 0) -> Held:
    """Refuses a stream that this machine cannot hold; returns what it holds.

    Args:
        system: The system, with the numbers of the run in it.
        size: One video of as many frames as the stream has in its window.
        matrix: Rows over this window.
        kept: Earlier states that are kept, to go back to them.

    Raises:
        DeviceMemoryError: With what is needed, what is there, and the largest that fits.
    """

    def needed(system: System, size: Size) -> int:
        # The chunk before stays valid, and so does what it was made of.
        return price(system, size, matrix).on_device() + (1 + kept) * sum(held(system, size))

    _fit(system, size, needed)
    return held(system, size)


def _fit(system: System, size: Size, needed: Callable[[System, Size], int]) -> None:
    """Refuses what does not fit.

    Args:
        system: The system.
        size: What is made.
        needed: Returns the bytes of a device.
    """
    device = jax.local_devices()[0]
    free = free_memory(), free_device_memory(device)

    def lacking(system: System, size: Size) -> tuple[int, str, int] | None:
        """Returns the bytes that are needed where too few are free, if so."""
        least = host_bytes(size)
        if free[0] is not None and least > free[0]:
            return least, "the host", free[0]
        least = needed(system, size)
        if free[1] is not None and least > free[1]:
            return least, device.device_kind, free[1]
        return None

    found = lacking(system, size)
    if found is None:
        return
    what = f"{size}: about {amount(found[0])} of memory are needed"
    why = f"{found[1]} has {amount(found[2])} free"
    kept = smaller_cache(system, lambda system: lacking(system, size) is None)
    if kept is not None:
        what = f"{what}, with a cache of {_cache_of(system).frames} latent frames"
        fix = f"keep {kept}: --sampling.policy.frames {kept} --sampling.matrix.lookback {kept}"
        raise DeviceMemoryError(what, why, fix)
    vaes = system.vae.values() if isinstance(system.vae, Mapping) else (system.vae,)
    pictures = next(vae for vae in vaes if not hasattr(vae, "rate"))
    rows, columns = (stride * system.model.patch for stride in pictures.strides[1:])
    fits = largest_that_fits(size, (rows, columns), lambda size: lacking(system, size) is None)
    fix = f"the largest that fits: {fits}" if fits else "use fewer frames"
    raise DeviceMemoryError(what, why, fix)


def _cache_of(system: System) -> Any:
    """Returns the policy that keeps keys and values, if the system has one."""
    policy = system.network.policy
    return policy if isinstance(policy, CachedCausal | LevelBank) else None


def smaller_cache(system: System, fits: Callable[[System], bool]) -> int | None:
    """Returns how many latent frames a cache can hold, less than it does; None if none fits.

    Args:
        system: What does not fit.
        fits: Says whether another system fits.
    """
    policy = _cache_of(system)
    if policy is None:
        return None

    def keeps(frames: int) -> bool:
        fewer = dataclasses.replace(policy, frames=frames)
        sampling = dataclasses.replace(system.sampling, policy=fewer)
        return fits(dataclasses.replace(system, sampling=sampling))

    return _last(policy.sink, policy.frames, keeps)


def _last(low: int, high: int, fits: Callable[[int], bool]) -> int | None:
    """Returns the largest number above `low` and below `high` that fits; None if none does."""
    first = low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low if low > first else None


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

    make, high = fewer, size.videos
    if not fits(fewer(1)):
        make, high = scaled, max(rows, columns)
    found = _last(0, high, lambda part: fits(make(part)))
    return None if found is None else make(found)


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


def amount(count: int | float) -> str:
    """Returns a number of bytes for people: 11.4 PB."""
    thousands = min(int(math.log10(max(count, 1)) // 3), 5)
    return f"{count / 1000**thousands:.3g} {('B', 'kB', 'MB', 'GB', 'TB', 'PB')[thousands]}"


def _duration(seconds: int | float) -> str:
    """Returns a time for people: 12 minutes."""
    for name, length in (("years", 31557600), ("days", 86400), ("hours", 3600)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {name}"
    return f"{max(seconds / 60, 1):.3g} minutes"
