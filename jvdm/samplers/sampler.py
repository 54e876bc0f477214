"""The loop over noise levels: the only one in jvdm.

A run is data: a timestep matrix, a denoiser, a solver. `start` makes the state, `advance`
does any number of rows, `sample` does all of them. Nothing here talks to the host, so a
run is one compiled program, or one per group of rows where progress is to be shown.

A run of several modalities (`modalities.py`) has dicts by name where one has a value: latents,
matrices, processes, solvers and addresses. They share the rows; the denoiser is called with a dict
of latents and one of calls, and says a dict.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Bool, Float, Int, Key, PyTree
from jvdm.errors import ConfigError, NumericsError
from jvdm.keys import addressed_normal, named
from jvdm.samplers.denoiser import Call, Denoiser, Draws, JointDenoiser, Row
from jvdm.samplers.matrices import TimestepMatrix, level_at
from jvdm.samplers.modalities import any_of, each, every
from jvdm.samplers.noise import Address, consecutive
from jvdm.samplers.process import Process, expand
from jvdm.samplers.solvers import Context, Solver
from jvdm.samplers.solvers.solver import step_all

OneOrMore = Float[Array, "B F ..."] | Mapping[str, Float[Array, "_ _ ..."]]
"""Latents, or those of every modality by name."""

# Levels that the arithmetic of frozen frames is done at: legal for every process.
_HARMLESS_T, _HARMLESS_T_NEXT = 0.5, 0.25


class State(NamedTuple):
    """Everything that a run remembers between rows; but for the carry, dicts of modalities.

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
    solver: Solver | Mapping[str, Solver],
    x: OneOrMore,
    key: Key,
    carry: PyTree = None,
    address: Address | Mapping[str, Address] | None = None,
) -> State:
    """Returns the state before the first row.

    Args:
        solver: The solver of the run; that of all modalities, or one for each.
        x: Latents at the levels of the first row: noise, or clean where frozen.
        key: Stream of the run; that of a modality is `named` by it.
        carry: The denoiser's first state, for guidance that of all branches.
        address: Which samples and frames `x` holds; None counts both from 0.

    Raises:
        ConfigError: If the modalities of the arguments differ.
    """
    if not isinstance(x, Mapping):
        assert not isinstance(solver, Mapping) and not isinstance(address, Mapping)
        return _start(solver, x, key, carry, address)
    keys = {name: named(key, name) for name in x}
    given = (every(value, x) for value in (solver, x))
    parts = each(_start, *given, keys, every(None, x), every(address, x))
    fields = {
        name: each(lambda part, name=name: getattr(part, name), parts) for name in State._fields
    }
    return State(**fields)._replace(carry=carry)


def _start(
    solver: Solver,
    x: Float[Array, "B F ..."],
    key: Key,
    carry: PyTree,
    address: Address | None,
) -> State:
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
    denoise: Denoiser | JointDenoiser,
    solver: Solver | Mapping[str, Solver],
    process: Process | Mapping[str, Process],
    matrix: TimestepMatrix | Mapping[str, TimestepMatrix],
    x: OneOrMore,
    key: Key,
    *,
    carry: PyTree = None,
    address: Address | Mapping[str, Address] | None = None,
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

    Raises:
        ConfigError: If modalities have different names, or matrices of different rows.
    """
    state = start(solver, x, key, carry, address)
    return advance(denoise, solver, process, matrix, state, 0, shared_rows(matrix))


def shared_rows(matrix: TimestepMatrix | Mapping[str, TimestepMatrix]) -> int:
    """Returns the number of rows of a run.

    Raises:
        ConfigError: If those of its modalities differ.
    """
    if not isinstance(matrix, Mapping):
        return matrix.num_rows
    rows = {name: one.num_rows for name, one in matrix.items()}
    if len(set(rows.values())) > 1:
        raise ConfigError(
            "matrices of " + ", ".join(f"{name} with {count} rows" for name, count in rows.items()),
            "the modalities of a run share its rows",
            f"use pad_rows(matrix, {max(rows.values())})",
        )
    return next(iter(rows.values()))


def advance(
    denoise: Denoiser | JointDenoiser,
    solver: Solver | Mapping[str, Solver],
    process: Process | Mapping[str, Process],
    matrix: TimestepMatrix | Mapping[str, TimestepMatrix],
    state: State,
    row: int | Int[Array, ""],
    num_rows: int,
    writes: tuple[bool, ...] | None = None,
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
        writes: Which frames of a window all of them write to a cache, where that is known, and that
            each has work (static); None is not known.
    """

    solver, process, matrix = (every(value, state.x) for value in (solver, process, matrix))
    shared_rows(matrix)

    def body(state: State, k: Array) -> tuple[State, None]:
        return _one_row(denoise, solver, process, matrix, state, k, writes), None

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
    if isinstance(state.bad_row, Mapping):
        for bad_row in state.bad_row.values():
            raise_non_finite(state._replace(bad_row=bad_row))
        return
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


def _step_of_row(matrix: TimestepMatrix, k: Array, frames: Array, writes: Any) -> _Step:
    inside = k < matrix.num_rows
    k = jnp.minimum(k, matrix.num_rows - 1)
    first = matrix.start[k]

    def in_window(values: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(values, first, matrix.window)

    t = in_window(level_at(matrix, matrix.index[k]))
    t_next = in_window(level_at(matrix, matrix.index[k + 1]))
    write = in_window(matrix.write[k]) & inside if writes is None else np.array(writes)
    levels = level_at(matrix, matrix.index)
    to_come = jnp.arange(matrix.num_rows)[:, None] >= k
    remaining = jnp.sum((levels[:-1] != levels[1:]) & to_come, axis=0, dtype=jnp.int32)
    moving = (t != t_next) & inside
    row = Row(k, first, write, frames[first], moving, level=in_window(matrix.index[k]))
    return _Step(row, t, t_next, moving, in_window(remaining))


def _one_row(denoise, solver, process, matrix, state: State, k: Array, writes: Any) -> State:
    """Takes row `k` to row `k + 1`; skipped where neither a level nor a cache changes."""
    step = each(lambda matrix, a: _step_of_row(matrix, k, a.frames, writes), matrix, state.address)

    def work(state: State) -> State:
        everything = each(_Frames, state.x, state.solver, state.updates, state.bad_row)
        old = each(_window, everything, step, matrix)
        now = each(_of_samples, step, old)
        shown = _shown(denoise, each(_seen, now, old))
        addressed = each(lambda *where: where, state.key, state.address)
        context = each(
            functools.partial(_context, shown, state.carry), process, now, old, addressed
        )
        x, solver_state = (each(attrgetter(name), old) for name in ("x", "solver"))
        stepped = step_all(solver, x, solver_state, context)
        new = each(_select, old, stepped.x, stepped.state, context)
        everything = each(_put_back, everything, new, step)
        fields = {name: each(attrgetter(name), everything) for name in _Frames._fields}
        return state._replace(**fields, carry=stepped.carry)

    if writes is not None:  # a GPU would wait for the host, which reads whether there is work
        return work(state)
    works = each(lambda step: step.moving | step.row.write, step)
    return jax.lax.cond(any_of(works), work, lambda state: state, state)


def _of_samples(step: _Step, old: _Frames) -> _Step:
    """Returns a row with the level of every sample's frames, and whether they move."""
    shape = old.updates.shape
    moving = jnp.broadcast_to(step.moving, shape)
    t = jnp.broadcast_to(step.t, shape).astype(old.x.dtype)
    return step._replace(t=t, moving=moving)


def _seen(step: _Step, old: _Frames) -> Callable[[Array, Call], tuple[Array, Call]]:
    """Returns what is shown to the network: frozen frames as they are, at their true levels."""

    def see(x: Array, call: Call) -> tuple[Array, Call]:
        x = jnp.where(expand(step.moving, x), x, old.x)
        t, t_next = (jnp.where(step.moving, t, step.t) for t in (call.t, call.t_next))
        return x, Call(t, t_next, call.row)

    return see


def _shown(denoise: Any, see: Any) -> Any:
    """Returns the network, shown what `see` makes of all that a solver asks."""

    def shown(x: Any, call: Any, carry: PyTree) -> tuple[Any, PyTree]:
        seen = each(lambda see, *asked: see(*asked), see, x, call)
        x, call = (each(itemgetter(part), seen) for part in (0, 1))
        return denoise(x, call, carry)

    return shown


def _context(
    denoise: Denoiser,
    carry: PyTree,
    process: Process,
    step: _Step,
    old: _Frames,
    addressed: tuple[Key, Address],
) -> Context:
    """Returns the step of a window."""
    shape, moving = old.updates.shape, step.moving
    t_next = jnp.where(moving, jnp.broadcast_to(step.t_next, shape), _HARMLESS_T_NEXT)
    return Context(
        denoise=denoise,
        t=jnp.where(moving, step.t, _HARMLESS_T),
        t_next=t_next.astype(old.x.dtype),
        carry=carry,
        process=process,
        moving=moving,
        updates=old.updates,
        noise=_noise(*addressed, old, step.row.start),
        remaining=jnp.broadcast_to(step.remaining, shape),
        row=step.row._replace(draws=Draws(addressed[0], addressed[1].samples)),
    )


def _select(old: _Frames, x: Array, state: PyTree, context: Context) -> _Frames:
    """Returns the new values of moving frames and the old bits of frozen ones."""
    moving = context.moving

    def choose(new: Array, value: Array) -> Array:
        return jnp.where(expand(moving, value), new, value)

    finite = jnp.isfinite(x).reshape(*moving.shape, -1).all(axis=-1)
    first_bad = moving & ~finite & (old.bad_row < 0)
    return _Frames(
        x=choose(x, old.x),
        solver=jax.tree.map(choose, state, old.solver),
        updates=old.updates + moving,
        bad_row=jnp.where(first_bad, context.row.index, old.bad_row),
    )


def _window(frames: _Frames, step: _Step, matrix: TimestepMatrix) -> _Frames:
    first, window = step.row.start, matrix.window
    if window == frames.updates.shape[1]:
        return frames
    return jax.tree.map(
        lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, window, axis=1), frames
    )


def _put_back(frames: _Frames, part: _Frames, step: _Step) -> _Frames:
    first = step.row.start
    if part.updates.shape == frames.updates.shape:
        return part
    return jax.tree.map(
        lambda leaf, new: jax.lax.dynamic_update_slice_in_dim(leaf, new, first, axis=1),
        frames,
        part,
    )


def _noise(key: Key, address: Address, window: _Frames, first: Array) -> Callable[[int], Array]:
    """Returns the source of fresh noise for the frames of a window."""
    samples, frames = address
    frames = jax.lax.dynamic_slice_in_dim(frames, first, window.x.shape[1])

    def draw(number: int) -> Array:
        drawn = jax.random.fold_in(key, number)
        shape = window.x.shape[2:]
        return addressed_normal(drawn, samples, frames, shape, window.updates)

    return draw
