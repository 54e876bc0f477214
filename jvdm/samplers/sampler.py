"""The loop over noise levels: the only one in jvdm.

A run is data: a timestep matrix, a denoiser, a solver. `start` makes the state, `advance`
does any number of rows, `sample` does all of them. Nothing here talks to the host, so a
run is one compiled program, or one per group of rows where progress is to be shown.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Bool, Float, Int, Key, PyTree
from jvdm.errors import NumericsError
from jvdm.keys import addressed_normal, named
from jvdm.samplers.denoiser import Call, Denoised, Denoiser, Row
from jvdm.samplers.matrices import TimestepMatrix, level_at
from jvdm.samplers.noise import Address, consecutive
from jvdm.samplers.process import Process, expand
from jvdm.samplers.solvers import Context, Solver, Stepped

# Levels that the arithmetic of frozen frames is done at: legal for every process.
_HARMLESS_T, _HARMLESS_T_NEXT = 0.5, 0.25


class State(NamedTuple):
    """Everything that a run remembers between rows.

    Attributes:
        x: f32[B, F, ...], the latents.
        solver: The solver's state, leaves [B, F, ...].
        updates: i32[B, F], steps that each frame has made.
        bad_row: i32[B, F], row of the first step to a non-finite value, -1 if none.
        carry: The denoiser's state.
        key: Stream of the noise that stochastic solvers draw.
        address: Which samples and frames these are in the whole job.
    """

    x: Float[Array, "B F ..."]
    solver: PyTree
    updates: Int[Array, "B F"]
    bad_row: Int[Array, "B F"]
    carry: PyTree
    key: Key
    address: Address


class _Frames(NamedTuple):
    """The part of the state that has a frame axis, as axis 1."""

    x: Array
    solver: PyTree
    updates: Array
    bad_row: Array


def start(
    solver: Solver,
    x: Float[Array, "B F ..."],
    key: Key,
    carry: PyTree = None,
    address: Address | None = None,
) -> State:
    """Returns the state before the first row.

    Args:
        solver: The solver of the run.
        x: Latents at the levels of the first row: noise, or clean where frozen.
        key: Stream of the run.
        carry: The denoiser's first state, for guidance that of all branches.
        address: Which samples and frames `x` holds; None counts both from 0.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    batch, latent_frames = x.shape[:2]
    return State(
        x=x,
        solver=solver.init(x),
        updates=jnp.zeros((batch, latent_frames), jnp.int32),
        bad_row=jnp.full((batch, latent_frames), -1, jnp.int32),
        carry=carry,
        key=named(key, "solver noise"),
        address=address or consecutive(batch, latent_frames),
    )


def sample(
    denoise: Denoiser,
    solver: Solver,
    process: Process,
    matrix: TimestepMatrix,
    x: Float[Array, "B F ..."],
    key: Key,
    *,
    carry: PyTree = None,
    address: Address | None = None,
) -> State:
    """Does a whole run.

    Args:
        denoise: The network, with its guidance.
        solver: How a step is made.
        process: The corruption process that the network was trained on.
        matrix: The levels of every row; must pass `validate`.
        x: Latents at the levels of the first row: noise, or clean where frozen.
        key: Stream of the noise that stochastic solvers draw.
        carry: The denoiser's first state.
        address: Which samples and frames `x` holds; None counts both from 0.

    Returns:
        The last state; its `x` are the latents. Frozen frames have the bits they came
        with. Call `raise_non_finite` on it, on the host.
    """
    state = start(solver, x, key, carry, address)
    return advance(denoise, solver, process, matrix, state, 0, matrix.num_rows)


def advance(
    denoise: Denoiser,
    solver: Solver,
    process: Process,
    matrix: TimestepMatrix,
    state: State,
    row: int | Int[Array, ""],
    num_rows: int,
) -> State:
    """Does `num_rows` rows of a run from `row` on.

    Args:
        denoise: The network, with its guidance.
        solver: How a step is made.
        process: The corruption process that the network was trained on.
        matrix: The levels of every row.
        state: The state after the rows before `row`.
        row: First row; traced, so one compiled program does any part of a run.
        num_rows: Number of rows (static); rows past the end change nothing.
    """

    def body(state: State, k: Array) -> tuple[State, None]:
        return _one_row(denoise, solver, process, matrix, state, k), None

    rows = row + jnp.arange(num_rows, dtype=jnp.int32)
    return jax.lax.scan(body, state, rows)[0]


def run_rows(
    step: Callable[[State, np.int32], State], state: State, num_rows: int
) -> Iterator[State]:
    """Does a run row by row from the host, for progress bars, callbacks and interruption.

    Args:
        step: Compiled program `(state, row) -> state` around `advance` with one row; it may
            donate the state, so a yielded state is valid until the next one is asked for.
        state: The state before row 0.
        num_rows: Rows to do.

    Yields:
        The state after each row, once it is computed and known to be finite.

    Raises:
        NumericsError: If a row gave a non-finite value.
    """
    for row in range(num_rows):
        state = step(state, np.int32(row))
        raise_non_finite(state)
        yield state


def raise_non_finite(state: State) -> None:
    """Raises an error that names the first step that gave a non-finite value; waits for it.

    Raises:
        NumericsError: If any step did.
    """
    bad = np.asarray(state.bad_row)
    if (bad < 0).all():
        return
    row = int(bad[bad >= 0].min())
    sample_index, frame = (int(i) for i in np.argwhere(bad == row)[0])
    raise NumericsError(
        f"step {row} of sampling gave a non-finite value "
        f"in latent frame {frame} of sample {sample_index}",
        "the network's output left the range of its number type, or the weights are damaged",
        "compute in float32, lower the guidance scale, or check the weights with `jvdm inspect`",
    )


class _Step(NamedTuple):
    """One row as seen by its window of `W` frames: the same for all samples."""

    row: Row
    t: Float[Array, " W"]
    t_next: Float[Array, " W"]
    moving: Bool[Array, " W"]
    remaining: Int[Array, " W"]


def _step_of_row(matrix: TimestepMatrix, k: Array, frames: Int[Array, " F"]) -> _Step:
    inside = k < matrix.num_rows
    k = jnp.minimum(k, matrix.num_rows - 1)
    first = matrix.start[k]

    def in_window(values: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(values, first, matrix.window)

    t = in_window(level_at(matrix, matrix.index[k]))
    t_next = in_window(level_at(matrix, matrix.index[k + 1]))
    write = in_window(matrix.write[k]) & inside
    levels = level_at(matrix, matrix.index)
    to_come = jnp.arange(matrix.num_rows)[:, None] >= k
    remaining = jnp.sum((levels[:-1] != levels[1:]) & to_come, axis=0, dtype=jnp.int32)
    moving = (t != t_next) & inside
    return _Step(Row(k, first, write, frames[first]), t, t_next, moving, in_window(remaining))


def _one_row(
    denoise: Denoiser,
    solver: Solver,
    process: Process,
    matrix: TimestepMatrix,
    state: State,
    k: Array,
) -> State:
    """Takes row `k` to row `k + 1`; skipped where neither a level nor a cache changes."""
    step = _step_of_row(matrix, k, state.address.frames)

    def work(state: State) -> State:
        everything = _Frames(state.x, state.solver, state.updates, state.bad_row)
        old = _window(everything, step.row.start, matrix.window)
        context = _context(denoise, process, step, state, old)
        stepped = solver.step(old.x, old.solver, context)
        new = _select(old, stepped, context.moving, step.row.index)
        everything = _put_back(everything, new, step.row.start)
        return state._replace(**everything._asdict(), carry=stepped.carry)

    def rest(state: State) -> State:
        return state

    return jax.lax.cond(jnp.any(step.moving | step.row.write), work, rest, state)


def _context(
    denoise: Denoiser, process: Process, step: _Step, state: State, old: _Frames
) -> Context:
    """Returns the step of a window; the network is always shown frozen frames as they are."""
    shape = old.updates.shape
    moving = jnp.broadcast_to(step.moving, shape)
    true_t = jnp.broadcast_to(step.t, shape).astype(old.x.dtype)

    def shown(x: Array, call: Call, carry: PyTree) -> tuple[Denoised, PyTree]:
        x = jnp.where(expand(moving, x), x, old.x)
        t, t_next = (jnp.where(moving, t, true_t) for t in (call.t, call.t_next))
        return denoise(x, Call(t, t_next, call.row), carry)

    t_next = jnp.where(moving, jnp.broadcast_to(step.t_next, shape), _HARMLESS_T_NEXT)
    return Context(
        denoise=shown,
        t=jnp.where(moving, true_t, _HARMLESS_T),
        t_next=t_next.astype(old.x.dtype),
        carry=state.carry,
        process=process,
        moving=moving,
        updates=old.updates,
        noise=_noise(state, old, step.row.start),
        remaining=jnp.broadcast_to(step.remaining, shape),
        row=step.row,
    )


def _select(old: _Frames, stepped: Stepped, moving: Array, row: Array) -> _Frames:
    """Returns the new values of moving frames and the old bits of frozen ones."""

    def choose(new: Array, value: Array) -> Array:
        return jnp.where(expand(moving, value), new, value)

    finite = jnp.isfinite(stepped.x).reshape(*moving.shape, -1).all(axis=-1)
    first_bad = moving & ~finite & (old.bad_row < 0)
    return _Frames(
        x=choose(stepped.x, old.x),
        solver=jax.tree.map(choose, stepped.state, old.solver),
        updates=old.updates + moving,
        bad_row=jnp.where(first_bad, row, old.bad_row),
    )


def _window(frames: _Frames, first: Array, window: int) -> _Frames:
    if window == frames.updates.shape[1]:
        return frames
    return jax.tree.map(
        lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, window, axis=1), frames
    )


def _put_back(frames: _Frames, part: _Frames, first: Array) -> _Frames:
    if part.updates.shape == frames.updates.shape:
        return part
    return jax.tree.map(
        lambda leaf, new: jax.lax.dynamic_update_slice_in_dim(leaf, new, first, axis=1),
        frames,
        part,
    )


def _noise(state: State, window: _Frames, first: Array) -> Callable[[int], Array]:
    """Returns the source of fresh noise for the frames of a window."""
    samples, frames = state.address
    frames = jax.lax.dynamic_slice_in_dim(frames, first, window.x.shape[1])

    def draw(number: int) -> Array:
        key = jax.random.fold_in(state.key, number)
        shape = window.x.shape[2:]
        return addressed_normal(key, samples, frames, shape, window.updates)

    return draw
