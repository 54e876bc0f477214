"""What runs on the device: pure functions, each compiled once per structure and shape.

The networks of a system are static, its numbers are arguments: another prompt, seed,
guidance scale or timestep matrix of the same shape finds its program in JAX's cache.
"""

import concurrent.futures
import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import UInt32

from jvdm import samplers
from jvdm.arrays import Array, Bool, Float, Int, Latents, PyTree, UInt8
from jvdm.attention import Bank, KVCache
from jvdm.compiling import Program
from jvdm.errors import DeviceMemoryError, NumericsError
from jvdm.keys import named
from jvdm.machine import is_out_of_memory
from jvdm.models.conditions import ChannelCondition, Conditions, TextStates
from jvdm.models.low_rank import variables
from jvdm.parallel import beside_branches, constrain, constrain_batch, constrain_carry, using
from jvdm.samplers import NoiseInitialiser, Process, StreamRows, StreamState, TimestepMatrix
from jvdm.samplers.modalities import each, every
from jvdm.samplers.process import corrupt, expand
from jvdm.samplers.sampler import State
from jvdm.stages import stage
from jvdm.system import System
from jvdm.vae import tiling

Placed = tuple[Float[Array, "#B _ H W C"], Int[Array, " _"]]
"""Clean latents, and the frames that they are."""


def compile_together(lowerings: Sequence[Callable[[], Any]]) -> None:
    """Compiles programs side by side, where JAX finds them when they are called.

    Args:
        lowerings: Each returns a lowered program.
    """
    with (
        stage("compile", total=len(lowerings), unit="program") as bar,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        done = [pool.submit(lambda lower: lower().compile(), lower) for lower in lowerings]
        for future in concurrent.futures.as_completed(done):
            future.result()
            bar.update()


@functools.partial(Program, static_argnames=("mesh",))
def read_text(system: System, params: PyTree, ids: PyTree, mesh: Mesh | None = None) -> TextStates:
    """Returns the states of prompts, whole on every device of a mesh."""
    states = system.told(params, ids).text
    assert states is not None
    return _whole(states, mesh)


@functools.partial(Program, static_argnames=("shape", "columns"))
def tell(
    system: System,
    params: PyTree,
    ids: PyTree,
    clip: Latents | None,
    shape: Sequence[int] | Mapping[str, Sequence[int]],
    columns: tuple[int, ...] = (),
    pictures: Float[Array, "#B K h w 3"] | None = None,
) -> Conditions:
    """Returns what the model is told in all guidance branches.

    Args:
        system: Vision encoder and guidance, and the text encoder where it reads `ids`.
        params: Parameters.
        ids: States of the prompts, or what the text encoder reads of them, branch-major.
        clip: The first latents of the channel port, for one video or for each.
        shape: Sizes of the latents of the run; those of several modalities have neither clip nor
            pictures.
        columns: Latent frames of the clip that count.
        pictures: What the vision encoder reads of `K` pictures, of one video or of each.
    """
    if isinstance(shape, Mapping):
        return system.conditions(params, ids)
    channel = None
    if clip is not None:
        empty, count = jnp.zeros(tuple(shape)), clip.shape[1]
        known = jnp.zeros(tuple(shape[:-1]), bool).at[:, jnp.array(columns)].set(True)
        channel = ChannelCondition(empty.at[:, :count].set(clip), known)
    states = None if pictures is None else system.see(params, pictures)
    if states is not None:
        states = jnp.broadcast_to(states, (shape[0], *states.shape[1:]))
    return system.conditions(params, ids, channel, states)


@functools.partial(Program, static_argnames=("shape", "mesh"))
def begin(
    system: System,
    matrix: TimestepMatrix | Mapping[str, TimestepMatrix],
    seeds: UInt32[Array, " B"],
    noise: Latents | Mapping[str, Latents] | None,
    placed: tuple[Placed, ...] | Mapping[str, tuple[Placed, ...]],
    shape: tuple[int, ...] | Mapping[str, tuple[int, ...]],
    mesh: Mesh | None,
) -> State:
    """Returns the state before the first row: every frame at the level that the row says.

    The noise of a video depends on its own seed and on the latent frame alone, that of one of
    several modalities on its name too.
    """
    key = jax.vmap(jax.random.key)(seeds)
    names = {name: name for name in shape} if isinstance(shape, Mapping) else None
    keys = each(
        lambda name: key if name is None else jax.vmap(lambda k: named(k, name))(key), names
    )
    source, process = system.sampling.noise or samplers.initial_noise, system.process
    given = (every(value, shape) for value in (noise, placed, source, process))
    x = each(_begun, shape, matrix, keys, *given)
    with using(mesh):
        carry = system.start(shape, each(lambda matrix: matrix.window, matrix))
    return _spread(system, samplers.start(system.sampling.solver, x, key[0], carry), mesh)


def _begun(
    shape: tuple[int, ...],
    matrix: TimestepMatrix,
    keys: Array,
    noise: Latents | None,
    placed: tuple[Placed, ...],
    source: NoiseInitialiser,
    process: Process,
) -> Latents:
    """Returns latents at the levels of the first row; there is a key for each sample."""
    if noise is None:
        first = jnp.zeros(1, jnp.int32)
        noise = jax.vmap(lambda one: source(one, first, shape[1], shape[2:])[0])(keys)
    assert noise is not None
    clean = jnp.zeros(shape)
    for values, columns in placed:
        clean = clean.at[:, columns].set(values)
    t = jnp.broadcast_to(samplers.times(matrix)[:1], shape[:2])
    return jnp.where(expand(t == 0, noise), clean, corrupt(process, clean, t, noise))


@functools.partial(Program, static_argnames=("mesh",), donate_argnames=("state",))
def denoise_row(
    system: System,
    params: PyTree,
    conditions: Conditions,
    matrix: TimestepMatrix | Mapping[str, TimestepMatrix],
    state: State,
    row: Int[Array, ""],
    mesh: Mesh | None,
) -> State:
    """Takes one row of the matrix to the next."""
    rules, denoise = system.sampling, beside_branches(system.denoiser(params, conditions), 1)
    solver = samplers.hooked(rules.solver, rules.hooks or ())
    with using(mesh):
        state = samplers.advance(denoise, solver, system.process, matrix, state, row, 1)
    return _spread(system, state, mesh)


def _spread(system: System, state: State, mesh: Mesh | None) -> State:
    """Fixes where the state lies, so that every row is the same program: videos are split."""
    if mesh is None:
        return state
    batch = (state.x, state.solver, state.updates, state.bad_row, state.address.samples)
    x, solver, updates, bad_row, samples = constrain_batch(batch, mesh)
    key, frames = _whole((state.key, state.address.frames), mesh)
    rows = len(jax.tree.leaves(x)[0]) * system.branches_at_once
    carry = constrain_carry(state.carry, mesh, rows)
    address = state.address._replace(samples=samples, frames=frames)
    return State(x, solver, updates, bad_row, carry, key, address)


@functools.partial(Program, static_argnames=("mesh",))
def encode(
    system: System,
    params: PyTree,
    frames: UInt8[Array, "B T h w 3"] | Float[Array, "B T h w 3"],
    mesh: Mesh | None = None,
) -> Latents:
    """Returns the standardised latents of pixel frames, bytes or RGB in 0..1."""
    if frames.dtype == jnp.uint8:
        frames = frames.astype(jnp.float32) / 255.0
    with using(mesh):
        return system.encode(params, frames)


@functools.partial(Program, static_argnames=("mesh",))
def decode(
    system: System,
    params: PyTree,
    latents: Latents,
    mesh: Mesh | None = None,
) -> tuple[Array, Bool[Array, ""]]:
    """Decodes standardised latents of a modality to bytes; of no pictures, to numbers.

    The flag says whether all values were finite.
    """
    with using(mesh):
        frames = system.decode(params, latents)
    shown = frames if hasattr(system.vae, "rate") else to_bytes(frames)
    return shown, jnp.all(jnp.isfinite(frames))


@functools.partial(Program, static_argnames=("shape", "mesh"))
def begin_stream(
    system: System,
    params: PyTree,
    conditions: Conditions,
    rows: StreamRows,
    clip: Latents | None,
    seed: UInt32[Array, ""],
    shape: tuple[int, ...],
    mesh: Mesh | None = None,
) -> StreamState:
    """Returns a stream before its first chunk, from a finished clip or from noise.

    Args:
        system: Network and rules.
        params: Parameters.
        conditions: What the network is told.
        rows: The rows of the stream.
        clip: As many clean latent frames as the buffer has; None begins with noise.
        seed: Seed of the video.
        shape: Sizes of the latents in the buffer.
        mesh: Devices that share the work.
    """
    key, solver, process = jax.random.key(seed), system.sampling.solver, system.process
    with using(mesh):
        carry = system.start(shape, rows.buffer)
        if clip is not None:
            state = samplers.warm_start(solver, process, rows, clip, key, carry=carry)
        else:
            denoise, size = system.denoiser(params, conditions), (shape[0], *shape[2:])
            state = samplers.stream_init(denoise, solver, process, rows, size, key, carry=carry)
    return _spread_stream(system, state, mesh)


@functools.partial(Program, static_argnames=("mesh",))
def place_stream(system: System, state: StreamState, mesh: Mesh | None) -> StreamState:
    """Puts a stream that was read from a file where the next chunk wants it."""
    return _spread_stream(system, state, mesh)


def _spread_stream(system: System, state: StreamState, mesh: Mesh | None) -> StreamState:
    """Fixes where a stream lies, so that every chunk is the same program."""
    if mesh is None:
        return state
    noise, chunks = _whole((state.noise, state.chunks), mesh)
    return StreamState(_spread(system, state.run, mesh), noise, chunks)


def _whole(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Says that all devices of a mesh have the whole of every array."""
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


@functools.partial(Program, static_argnames=("mesh",))
def stream_chunk(
    system: System,
    params: PyTree,
    conditions: Conditions,
    rows: StreamRows,
    state: StreamState,
    mesh: Mesh | None = None,
) -> tuple[StreamState, Latents]:
    """Finishes a block of latent frames and lets noise enter; the old state stays valid."""
    solver, heard = system.sampling.solver, getattr(system.network, "heard", None)
    with using(mesh):
        if heard is not None:  # once for all rows
            conditions = heard(variables(params["model"]), conditions)
        denoise = system.denoiser(params, conditions)
        state, latents = samplers.stream_step(denoise, solver, system.process, rows, state)
    return _spread_stream(system, state, mesh), _whole(latents, mesh)


stream_on = Program(stream_chunk.__wrapped__, static_argnames=("mesh",), donate_argnames=("state",))
"""`stream_chunk` in the memory of the old state, for streams that never go back."""


@functools.partial(Program, static_argnames=("mesh",))
def retell(
    system: System,
    params: PyTree,
    conditions: Conditions,
    rows: StreamRows,
    state: StreamState,
    clean: Latents,
    mesh: Mesh | None = None,
) -> StreamState:
    """Makes a cache ready for another prompt: forgets, cuts, and writes `clean` again, if any.

    Of a stream that is younger than `clean`, what there is stands at its end.
    """
    run, frame = state.run, state.run.address.frames[0]

    def told(part: Any) -> Any:
        if _keeps(part) and rows.flush is not None:
            part = part.forget(system.network.policy.sink, frame - rows.flush)
        return part.cut(frame, rows.cut) if _keeps(part) and rows.cut is not None else part

    carry = jax.tree.map(told, run.carry, is_leaf=_keeps)
    state = state._replace(run=run._replace(carry=carry))
    if rows.rewrite:
        denoise = system.denoiser(params, conditions)
        rules = (denoise, system.sampling.solver, system.process, rows)
        with using(mesh):
            state = samplers.stream_rewrite(*rules, state, clean)
    return _spread_stream(system, state, mesh)


def _keeps(part: Any) -> bool:
    return isinstance(part, KVCache | Bank)


@functools.partial(Program, static_argnames=("mesh",))
def decode_piece(
    system: System, params: PyTree, latents: Latents, carry: PyTree, mesh: Mesh | None = None
) -> tuple[UInt8[Array, "B T h w 3"], Bool[Array, ""], PyTree]:
    """Decodes the next latents of a video as `decode` does the whole; None begins one.

    Returns:
        The frames, whether all are finite, and the carry of the next piece.
    """
    space = params["vae"]
    variables, method = {"params": space.params}, "decode_chunk"
    with using(mesh):
        given = constrain(space.restore(latents), "batch", "frames", "lines")
        frames, carry = system.vae.apply(variables, given, carry, method=method)
    finite, shown = jnp.all(jnp.isfinite(frames)), to_bytes(frames)
    return _whole((shown, finite, carry), mesh)


def decode_in_pieces(
    system: System, params: PyTree, latents: Latents, mesh: Mesh | None, **size: Any
) -> UInt8[np.ndarray, "B T h w 3"]:
    """Decodes tile by tile and chunk by chunk; the result is that of `decode`."""
    vae, space = system.vae, params["vae"]
    count, pieces = vae.num_frames(latents.shape[1]), []
    with (
        stage("decode", total=count, unit="frame") as bar,
        enough_memory(vae, latents.shape),
        using(mesh),
    ):
        for piece in tiling.decode(vae, space.params, space.restore(latents), **size):
            check_finite(bool(np.isfinite(piece).all()))
            pieces.append(np.asarray(to_bytes(jnp.asarray(piece))))
            bar.update(piece.shape[1])
    return np.concatenate(pieces, axis=1)


def check_finite(finite: bool) -> None:
    """Raises `NumericsError` if a decoded frame is not finite, so that it is never encoded."""
    if not finite:
        raise NumericsError(
            "the autoencoder decoded the latents to non-finite frames",
            "the latents are far from those of training, or the number type is too small",
            "load the model with dtype='float32'",
        )


@contextlib.contextmanager
def enough_memory(vae: Any, shape: Any) -> Iterator[None]:
    """Turns a device's lack of memory for latents of `shape` into an error that says what helps.

    Of several modalities it speaks of the first.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if isinstance(shape, Mapping):
            vae, shape = next((vae[name], size) for name, size in shape.items())
        batch, frames, height, width = shape[:4]
        _, rows, columns = vae.strides
        raise DeviceMemoryError(
            f"{batch} videos of {vae.num_frames(frames)} frames of "
            f"{rows * height}x{columns * width} pixels do not fit into the memory of "
            f"{jax.devices()[0].device_kind}",
            str(error).splitlines()[0],
            "make fewer videos at once, fewer frames or smaller ones",
        ) from error


@Program
def to_bytes(frames: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    """Rounds RGB of 0..1 to 0..255; values outside are clipped."""
    return jnp.round(jnp.clip(frames, 0.0, 1.0) * 255.0).astype(jnp.uint8)
