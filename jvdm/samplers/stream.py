"""Endless video: a rolling buffer of frames, and a timestep matrix that repeats.

In a wave every block of frames is `lag` rows behind the block before it. Seen from the front
of the wave, the rows repeat every `lag` rows, shifted by one block: `stream_step` does one
such cycle with the loop of `sampler.py`, hands out the finished block, moves the buffer on by
one block and lets noise enter at its end. What a chunk is depends on the key and on its
absolute frames alone, so a stream agrees with one long run of the same windows.

Reference: StreamDiT (arXiv:2507.03745) and FIFO-Diffusion (arXiv:2405.11473, lag 1, block 1).
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jvdm.arrays import Array, Float, Int, Key, PyTree
from jvdm.errors import ConfigError, NumericsError, ShapeError
from jvdm.keys import addressed_normal, named
from jvdm.samplers.cached import CachedMatrix, cached_by_level, rewritten
from jvdm.samplers.denoiser import Denoiser, PerFrame
from jvdm.samplers.matrices import TimestepMatrix, from_index, times
from jvdm.samplers.noise import Address, consecutive, initial_noise
from jvdm.samplers.process import Process, corrupt, expand
from jvdm.samplers.rules import (
    AutoregressiveMatrix,
    LagMatrix,
    SynchronousMatrix,
    WindowedMatrix,
)
from jvdm.samplers.sampler import State, advance, start
from jvdm.samplers.solvers import Solver


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class StreamRows:
    """The rows of a stream, as data.

    Attributes:
        ramp: From a buffer of noise to the first row of the cycle.
        cycle: The rows that repeat; `lag` steps over the frames of the buffer.
        block: Frames that a cycle finishes (static).
        context: Finished frames that stay at the front of the buffer (static).
        flush: Latest finished frames that a cache keeps where another prompt is told; None is all
            (static).
        rewrite: Latest finished frames that are then written to it again (static).
        cut: Places in time that are left out there (`CachedMatrix`); None is no cut (static).
        writes: Which frames of a window the last row of the cycle writes to a cache, where all
            others move frames and none of them writes; empty if it is one of these, None if that
            is not known (static).
    """

    ramp: TimestepMatrix
    cycle: TimestepMatrix
    block: int = dataclasses.field(metadata={"static": True})
    context: int = dataclasses.field(metadata={"static": True})
    flush: int | None = dataclasses.field(default=None, metadata={"static": True})
    rewrite: int = dataclasses.field(default=0, metadata={"static": True})
    cut: int | None = dataclasses.field(default=None, metadata={"static": True})
    writes: tuple[bool, ...] | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def buffer(self) -> int:
        """Frames in the buffer."""
        return self.cycle.latent_frames


class StreamState(NamedTuple):
    """Everything that a stream remembers between chunks; keep an old one to go back to it.

    Attributes:
        run: The state of the loop; its frames are those of the buffer.
        noise: Key of the run, from which the noise that enters is drawn.
        chunks: i32[], chunks handed out so far.
    """

    run: State
    noise: Key
    chunks: Int[Array, ""]


def stream_cycle(
    block: int, steps: int, lag: int, context: int = 0
) -> Int[np.ndarray, "rows buffer"]:
    """Returns the level indices of one period, `lag + 1` rows.

    `index[r, f] = clip(steps - lag + r - lag * ((f - context) // block), 0, steps)`.

    Args:
        block: Latent frames per chunk.
        steps: Steps `S` of one frame.
        lag: Rows between neighbouring blocks, 1 to `steps`; as many network calls are
            made per chunk.
        context: Finished frames before those in work, a multiple of `block`.

    Raises:
        ConfigError: If a number is out of range.
    """
    if block < 1 or not 1 <= lag <= steps:
        raise ConfigError(
            f"a stream of blocks of {block} with lag {lag} and {steps} steps",
            "a block has at least one frame, and a lag is 1 to the number of steps",
            f"choose a lag of 1 (a wave) to {steps} (a block after the other)",
        )
    if context < 0 or context % block:
        raise ConfigError(
            f"{context} frames of context in a stream of blocks of {block}",
            "the buffer moves by whole blocks",
            "choose a multiple of the block",
        )
    frames = np.arange(context + -(-steps // lag) * block)
    behind = lag * ((frames - context) // block)
    return np.clip(steps - lag + np.arange(lag + 1)[:, None] - behind[None], 0, steps)


def stream_rows(
    levels: Float[Array, " levels"],
    lag: int,
    block: int = 1,
    context: int = 0,
    *,
    kept: bool | Literal["by level"] = False,
) -> StreamRows:
    """Returns the rows of an endless wave.

    Args:
        levels: Grid of `S + 1` levels; its first one is what enters the buffer: below 1,
            the stream changes a video that is fed to it.
        lag: Rows between neighbouring blocks, 1 to `S`.
        block: Latent frames per chunk.
        context: Finished frames that the network is shown before those in work.
        kept: Whether a last row of every cycle writes the finished block to a cache of keys and
            values, which later ones read (`cached`); or every row what it moves, to one for each
            level (`cached_by_level`).

    Raises:
        ConfigError: If a number is out of range.
    """
    steps = levels.shape[0] - 1
    cycle = stream_cycle(block, steps, lag, context)
    ramp_rows = np.arange(steps - lag + lag * (context // block) + 1)
    blocks = np.arange(cycle.shape[1]) // block
    ramp = np.clip(ramp_rows[:, None] - lag * blocks[None], 0, steps)
    begins = from_index(levels, ramp)
    # Between equal levels nothing moves.
    falls = not isinstance(levels, Tracer) and bool(np.all(np.diff(np.asarray(levels)) < 0))
    if not kept:
        writes = () if falls else None
        return StreamRows(begins, from_index(levels, cycle), block, context, writes=writes)
    if kept == "by level":
        again = from_index(levels, cycle)
        begins, again = (  # of all frames in work
            dataclasses.replace(part, write=cached_by_level(part).write) for part in (begins, again)
        )
        return StreamRows(begins, again, block, context)
    again = from_index(levels, np.concatenate([cycle, cycle[-1:]]))
    write = np.zeros(again.write.shape, bool)
    write[-1, context : context + block] = True
    again = dataclasses.replace(again, write=jnp.asarray(write))
    writes = tuple(write[-1].tolist()) if falls else None
    return StreamRows(begins, again, block, context, writes=writes)


def stream_of(rule: Any, levels: Float[Array, " levels"], window: int) -> StreamRows:
    """Returns the endless rows of what makes the rows of a clip.

    Args:
        rule: A `LagMatrix` or `AutoregressiveMatrix`, alone or in a `WindowedMatrix` or in a
            `CachedMatrix`, whose cache stands for all finished frames. A `SynchronousMatrix` has
            no order to go on in and becomes the wave of single frames whose lag is the least that
            fits the window beside a finished frame.
        levels: Grid of `S + 1` levels.
        window: Latent frames that the network knows; what frames in work leave of it holds
            finished ones.

    Raises:
        ConfigError: If the rule has no such rows, its lag is not 1 to `S`, or a window that it asks
            for holds a part of a finished block.
    """
    steps, context = levels.shape[0] - 1, 0
    kept: bool | Literal["by level"] = False
    retold: dict[str, Any] = {}
    if isinstance(rule, CachedMatrix):
        kept = "by level" if rule.by_level else True
        retold = {"flush": rule.flush, "rewrite": rule.rewrite, "cut": rule.cut}
        if rule.by_level and (rule.cut is not None or rule.rewrite):
            what = f"a cut of {rule.cut} places and {rule.rewrite} frames to write again"
            why = "a cache for each level has frames as they were there, and no jumps"
            raise ConfigError(f"{what} in a stream", why, "leave both out, flush forgets")
        window, rule = 0, rule.rule
    asked = isinstance(rule, WindowedMatrix)
    if asked:
        window, context, rule = rule.window or 0, rule.context, rule.rule
    if isinstance(rule, SynchronousMatrix):
        rule = LagMatrix(-(-steps // max(1, min(window - 1, steps))))
    if isinstance(rule, AutoregressiveMatrix):
        rule = LagMatrix(steps, rule.block, rule.first_block)
    if not isinstance(rule, LagMatrix):
        raise ConfigError(
            f"the matrix {type(rule).__name__} was to be streamed",
            "it is made for a clip of a known length",
            "stream a wave (--sampling.matrix lag) or block by block (autoregressive); pictures "
            "that begin a stream need no matrix",
        )
    if rule.first_block not in (None, rule.block):
        what = f"a first block of {rule.first_block} latent frames in a stream of {rule.block}"
        why = "every chunk of a stream is one block; what begins it is a clip"
        raise ConfigError(what, why, "leave first_block out")
    in_work = -(-steps // max(1, rule.lag)) * rule.block
    context = max(context, window - in_work)
    context -= 0 if asked else context % rule.block
    rows = stream_rows(levels, rule.lag, rule.block, context, kept=kept)
    return _retold(rows, **retold) if retold else rows


def _retold(rows: StreamRows, flush: int | None, rewrite: int, cut: int | None) -> StreamRows:
    """Returns rows with what happens to a cache where another prompt is told."""
    block = rows.block
    if rewrite < 0 or rewrite % block or flush is not None and flush < 0:
        raise ConfigError(
            f"flush {flush} and rewrite {rewrite} of a stream of blocks of {block}",
            "they count finished frames, and whole blocks are written",
            f"use 0 or more, and a multiple of {block} to rewrite",
        )
    if cut is not None and (cut < 0 or rewrite or rows.buffer != block):
        raise ConfigError(
            f"a cut of {cut} places, {rewrite} frames to rewrite and {rows.buffer // block} blocks "
            "in work",
            "places grow, a new shot keeps nothing to write again, and none is in both shots",
            "use 0 or more, rewrite 0, and a block after the other (autoregressive)",
        )
    return dataclasses.replace(rows, flush=flush, rewrite=rewrite, cut=cut)


def stream_init(
    denoise: Denoiser,
    solver: Solver,
    process: Process,
    rows: StreamRows,
    shape: Sequence[int],
    key: Key,
    *,
    carry: PyTree = None,
    samples: Int[Array, " B"] | None = None,
) -> StreamState:
    """Fills the buffer from pure noise.

    The first rows show the network staggered frames before frames that are all noise.

    Args:
        denoise: The network, with its guidance.
        solver: How a step is made.
        process: The corruption process that the network was trained on.
        rows: The rows of the stream.
        shape: `(B, H, W, C)`: samples, and the shape of one latent frame.
        key: Stream of the run.
        carry: The denoiser's first state.
        samples: Index of each sample in the whole job; None counts from 0.
    """
    address = consecutive(shape[0], rows.buffer)
    if samples is not None:
        address = address._replace(samples=samples)
    noise = initial_noise(key, address.samples, rows.buffer, shape[1:])
    x = _entering(process, rows, jnp.zeros_like(noise), noise)
    run = start(solver, x, key, carry, address)
    if rows.ramp.num_rows:
        run = advance(denoise, solver, process, rows.ramp, run, 0, rows.ramp.num_rows)
    return StreamState(run, key, jnp.zeros((), jnp.int32))


def warm_start(
    solver: Solver,
    process: Process,
    rows: StreamRows,
    clip: Float[Array, "B F ..."],
    key: Key,
    *,
    carry: PyTree = None,
) -> StreamState:
    """Fills the buffer with a finished clip, noised to the first row of the cycle.

    Args:
        solver: How a step is made.
        process: The corruption process that the network was trained on.
        rows: The rows of the stream.
        clip: Clean latents of as many frames as the buffer has.
        key: Stream of the run.
        carry: The denoiser's first state.

    Raises:
        ShapeError: If the clip has another length than the buffer.
    """
    if clip.shape[1] != rows.buffer:
        raise ShapeError(
            f"the clip has {clip.shape[1]} latent frames",
            f"the buffer of this stream has {rows.buffer}",
            f"start from a clip of {rows.buffer} latent frames",
        )
    address = consecutive(*clip.shape[:2])
    noise = addressed_normal(named(key, "warm start"), *address, clip.shape[2:])
    t = jnp.broadcast_to(times(rows.cycle)[0], clip.shape[:2])
    noised = corrupt(process, clip, t, noise)
    x = jnp.where(expand(t == 0, clip), clip, noised)
    return StreamState(start(solver, x, key, carry, address), key, jnp.zeros((), jnp.int32))


def stream_step(
    denoise: Denoiser,
    solver: Solver,
    process: Process,
    rows: StreamRows,
    state: StreamState,
    incoming: Float[Array, "B block ..."] | None = None,
) -> tuple[StreamState, Float[Array, "B block ..."]]:
    """Finishes one block and lets the next one enter.

    Args:
        denoise: The network, with its guidance and what it is told from now on.
        solver: How a step is made.
        process: The corruption process.
        rows: The rows of the stream.
        state: The state after the chunk before.
        incoming: Clean latents to be changed, for rows whose levels begin below 1; None
            lets noise enter.

    Returns:
        The next state, and the latents of the finished block.
    """
    rules, count = (denoise, solver, process, rows.cycle), rows.cycle.num_rows
    if rows.writes is None:
        run = advance(*rules, state.run, 0, count)
    else:
        moving = count - bool(rows.writes)
        run = advance(*rules, state.run, 0, moving, (False,) * rows.cycle.window)
        run = advance(*rules, run, moving, 1, rows.writes) if rows.writes else run
    emitted = run.x[:, rows.context : rows.context + rows.block]
    samples, frames = run.address
    noise = initial_noise(
        state.noise, samples, rows.block, emitted.shape[2:], first_frame=frames[-1] + 1
    )
    clean = jnp.zeros_like(noise) if incoming is None else incoming.astype(jnp.float32)
    new = start(solver, _entering(process, rows, clean, noise), state.noise)

    def move(leaf: Array, at_end: Array) -> Array:
        return jnp.concatenate([leaf[:, rows.block :], at_end], 1)

    by_frame = ("x", "solver", "updates", "bad_row")
    moved = {name: jax.tree.map(move, getattr(run, name), getattr(new, name)) for name in by_frame}
    carry = jax.tree.map(
        lambda part: (
            jax.tree.map(lambda leaf: move(leaf, jnp.zeros_like(leaf[:, : rows.block])), part)
            if isinstance(part, PerFrame)
            else part
        ),
        run.carry,
        is_leaf=lambda part: isinstance(part, PerFrame),
    )
    run = run._replace(**moved, carry=carry, address=Address(samples, frames + rows.block))
    return StreamState(run, state.noise, state.chunks + 1), emitted


def stream_rewrite(
    denoise: Denoiser,
    solver: Solver,
    process: Process,
    rows: StreamRows,
    state: StreamState,
    clean: Float[Array, "B F ..."],
) -> StreamState:
    """Writes the latest finished frames to the cache again, as what is told now makes them.

    Args:
        denoise: The network, with its guidance and what it is told from now on.
        solver: How a step is made.
        process: The corruption process.
        rows: The rows of the stream.
        state: The state between two chunks.
        clean: Latents of these frames, whole blocks. Where fewer are finished, they are its last
            ones, and the others are not written.
    """
    count, (samples, frames) = clean.shape[1], state.run.address
    there = jnp.minimum(frames[0], count)
    clean = jnp.roll(clean, there - count, 1)  # what is not there comes last: nothing sees it
    again = rewritten(rows.cycle.levels, count, rows.buffer)
    again = dataclasses.replace(again, write=again.write & (jnp.arange(count) < there)[None])
    address = Address(samples, frames[0] - there + jnp.arange(count, dtype=jnp.int32))
    run = start(solver, clean, state.run.key, state.run.carry, address)
    run = advance(denoise, solver, process, again, run, 0, again.num_rows)
    return state._replace(run=state.run._replace(carry=run.carry))


def stream(
    step: Callable[[StreamState, PyTree], tuple[StreamState, Array]],
    state: StreamState,
    told: Iterable[PyTree],
) -> Iterator[tuple[StreamState, Array]]:
    """Hands out chunk after chunk, for live use.

    Args:
        step: Compiled program around `stream_step`; its second argument is what the network
            is told, so that another prompt is another value and no other program.
        state: The first state.
        told: What the network is told from each chunk on; the stream ends with it.

    Yields:
        The state after each chunk, which `stream` can go on from, and the chunk.

    Raises:
        NumericsError: If a chunk has a non-finite value.
    """
    for conditions in told:
        state, chunk = step(state, conditions)
        if not np.isfinite(np.asarray(chunk)).all():
            raise out_of_range(f"chunk {int(state.chunks) - 1} of the stream")
        yield state, chunk


def out_of_range(what: str) -> NumericsError:
    """Returns the error that says that `what` a network made is not finite."""
    return NumericsError(
        f"{what} has a non-finite value",
        "the network's output left the range of its number type",
        "compute in float32, or lower the guidance scale",
    )


def _entering(process: Process, rows: StreamRows, clean: Array, noise: Array) -> Array:
    t = jnp.broadcast_to(rows.cycle.levels[0], noise.shape[:2])
    return corrupt(process, clean, t, noise)
