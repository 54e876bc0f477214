"""Timestep matrices: which noise level each latent frame has at each row of a run.

A run takes row `k` to row `k + 1` in one step. A frame whose level does not change in a
step is frozen: it keeps its value and is shown to the network at that level. Text to
video, image to video, interpolation, continuation and autoregression are matrices.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Bool, Float, Int, UInt8
from jvdm.errors import ConfigError
from jvdm.samplers.process import Process

MAX_CELLS = 10_000_000  # of a matrix: days of work even where a call takes a millisecond

_ARRAYS = ("levels", "index", "start", "write")
_STATIC = ("window", "lookback")


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False)
class TimestepMatrix:
    """All levels of a run, as data: another matrix of equal shape never compiles again.

    Attributes:
        levels: Descending grid of noise levels, or one grid per frame.
        index: Which level each frame has, non-decreasing from row to row.
        start: First frame of the window that is fed to the network in each step.
        write: Frames whose keys and values are kept in that step's call.
        window: Number of frames fed to the network (static).
        lookback: Number of earlier frames that a cache must hold (static).

    Example:
        >>> matrix = lag_matrix(jnp.array([1.0, 0.5, 0.0]), 2, lag=2)
        >>> matrix.num_rows, matrix.latent_frames, matrix.num_steps
        (4, 2, 2)
        >>> matrix.index.tolist()
        [[0, 0], [1, 0], [2, 0], [2, 1], [2, 2]]
    """

    levels: Float[Array, " levels"] | Float[Array, "levels F"]
    index: Int[Array, "rows F"]
    start: Int[Array, " rows-1"]
    write: Bool[Array, "rows-1 F"]
    window: int
    lookback: int = 0

    @property
    def num_rows(self) -> int:
        """Number of steps `R`, padding included."""
        return self.start.shape[0]

    @property
    def latent_frames(self) -> int:
        """Number of frames `F`."""
        return self.index.shape[1]

    @property
    def num_steps(self) -> int:
        """Number of steps `S` in which one frame goes through the whole grid."""
        return self.levels.shape[0] - 1

    def tree_flatten_with_keys(self):
        """Splits the arrays from the static fields, for JAX."""
        children = [(jax.tree_util.GetAttrKey(n), getattr(self, n)) for n in _ARRAYS]
        return children, tuple(getattr(self, name) for name in _STATIC)

    @classmethod
    def tree_unflatten(cls, static, arrays):
        """Rebuilds a matrix, for JAX; the leaves may be anything, so none is checked."""
        matrix = object.__new__(cls)
        fields = zip(_ARRAYS + _STATIC, (*arrays, *static), strict=True)
        for name, value in fields:
            object.__setattr__(matrix, name, value)
        return matrix


class Cost(NamedTuple):
    """What a run needs, for a solver with one network evaluation per step.

    Attributes:
        calls: Number of steps in which any frame moves or is written to a cache.
        frame_evaluations: Frames fed to the network in all calls, per sample.
        first_output_call: Number of calls after which the first frame is finished; 0
            when no frame moves.
    """

    calls: int
    frame_evaluations: int
    first_output_call: int


def from_index(
    levels: Float[Array, " levels"] | Float[Array, "levels F"],
    index: Int[Array, "rows F"] | Int[np.ndarray, "rows F"],
) -> TimestepMatrix:
    """Returns the matrix with these level indices; all frames are fed in every step."""
    rows, latent_frames = index.shape[0] - 1, index.shape[1]
    return TimestepMatrix(
        levels=levels,
        index=jnp.asarray(index, jnp.int32),
        start=jnp.asarray(np.zeros(rows, np.int32)),
        write=jnp.asarray(np.zeros((rows, latent_frames), bool)),
        window=latent_frames,
    )


def lag_matrix(
    levels: Float[Array, " levels"],
    latent_frames: int,
    lag: int = 0,
    block: int = 1,
    *,
    first_block: int | None = None,
    prefix: int = 0,
) -> TimestepMatrix:
    """Lets every block of frames start `lag` rows after the block before it.

    `index[k, f] = clip(k - lag * (f // block), 0, S)`. Lag 0 denoises all frames
    together, lag `S` finishes a block before the next one starts (autoregression), and
    values between are a denoising wave.

    Args:
        levels: Grid of `S + 1` levels.
        latent_frames: Number of latent frames `F`.
        lag: Rows between neighbouring blocks.
        block: Latent frames per block; the last block may be shorter.
        first_block: Latent frames of the first block; None is `block`. A causal autoencoder makes
            its first latent frame of one picture: blocks of 1, 4, 4, ... keep it by itself.
        prefix: Latent frames before the first block, which are given clean and frozen.

    Returns:
        Matrix with `S + lag * (blocks - 1)` steps.

    Raises:
        ConfigError: If `lag` is negative, a block or `latent_frames` not positive, no frame follows
            the prefix, or there are more than `MAX_CELLS` cells.

    Reference: AR-Diffusion (arXiv:2503.07418) and SkyReels-V2 (arXiv:2504.13074)
    generate these rows with counters; the closed form is ours.

    Example:
        >>> times(lag_matrix(jnp.array([1.0, 0.5, 0.0]), 2, lag=1)).tolist()
        [[1.0, 1.0], [0.5, 1.0], [0.0, 0.5], [0.0, 0.0]]
    """
    first = block if first_block is None else first_block
    if lag < 0 or min(block, first, latent_frames) < 1:
        raise ConfigError(
            f"lag {lag}, block {block}, first block {first}, {latent_frames} latent frames",
            "a wave needs lag 0 or more, and at least one frame per block and per video",
            "reverse the frame order to start from the last frame",
        )
    if not 0 <= prefix < latent_frames:
        what, why = f"a prefix of {prefix} of {latent_frames} latent frames", "a wave follows it"
        raise ConfigError(what, why, f"use 0 to {latent_frames - 1}")
    steps = levels.shape[0] - 1
    last = max(-(-(latent_frames - prefix - first) // block), 0)
    rows = np.arange(count_rows(steps, latent_frames, lag * last) + 1)
    frames = np.arange(latent_frames) - prefix
    blocks = np.maximum((frames - first) // block + 1, 0)
    index = np.clip(rows[:, None] - lag * blocks[None], 0, steps)
    return from_index(levels, np.where(frames < 0, steps, index))


def count_rows(steps: int, latent_frames: int, waiting: int = 0) -> int:
    """Returns how many rows a run of `steps` has whose last frame waits for `waiting` rows.

    Raises:
        ConfigError: If there are more than `MAX_CELLS` cells; nothing is allocated before.
    """
    rows, most = steps + waiting, MAX_CELLS // latent_frames
    if rows > most:
        raise ConfigError(
            f"a run of {rows:,} rows of {latent_frames:,} latent frames was asked for",
            f"{most:,} rows of so many frames are the most",
            "use fewer steps, a smaller lag or fewer frames",
        )
    return rows


def synchronous(levels: Float[Array, " levels"], latent_frames: int) -> TimestepMatrix:
    """Denoises all frames together: ordinary text-to-video sampling."""
    return lag_matrix(levels, latent_frames)


def freeze(
    matrix: TimestepMatrix, frames: Sequence[int], level: int | None = None
) -> TimestepMatrix:
    """Keeps frames as they are given: image to video, interpolation, continuation.

    Args:
        matrix: The matrix of the other frames.
        frames: Latent frames to keep; negative numbers count from the end.
        level: Index of the noise level that the network is told for them; None is
            clean. A level before the end is told for context that was noised to it.

    Raises:
        ConfigError: If a frame or the level does not exist.

    Example:
        >>> times(freeze(synchronous(jnp.array([1.0, 0.5, 0.0]), 3), [0, -1])).tolist()
        [[0.0, 1.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.0]]
    """
    count, steps = matrix.latent_frames, matrix.num_steps
    for frame in frames:
        if not -count <= frame < count:
            raise ConfigError(
                f"frame {frame} was to be kept",
                f"the matrix has {count} latent frames",
                f"use frames {-count} to {count - 1}",
            )
    level = steps if level is None else _existing(level, steps)
    columns = jnp.asarray([frame % count for frame in frames], jnp.int32)
    return dataclasses.replace(matrix, index=matrix.index.at[:, columns].set(level))


def truncate(matrix: TimestepMatrix, level: int) -> TimestepMatrix:
    """Starts every frame at a later level, to change a finished video instead of noise.

    The shape stays, so other strengths do not compile again; rows in which nothing moves
    cost nothing. The run starts from data corrupted to `times(matrix)[0]`. Frames that
    `freeze` keeps at a level keep it.

    Args:
        matrix: A matrix from noise to clean.
        level: Index of the first level; 0 changes nothing.

    Raises:
        ConfigError: If the grid has no such level.

    Reference: Meng et al., SDEdit, arXiv:2108.01073.
    """
    level, index = _existing(level, matrix.num_steps), matrix.index
    later = jnp.where(index[0] != index[-1], jnp.maximum(index, level), index)
    return dataclasses.replace(matrix, index=later)


def _existing(level: int, steps: int) -> int:
    if not 0 <= level <= steps:
        raise ConfigError(
            f"level index {level} was asked for",
            f"the grid has indices 0 (noise) to {steps} (clean)",
            "choose one of these",
        )
    return level


def pad_rows(matrix: TimestepMatrix, num_rows: int) -> TimestepMatrix:
    """Repeats the last row until there are `num_rows` steps; the run does not change."""
    extra = num_rows - matrix.num_rows
    if extra < 0:
        raise ConfigError(
            f"{num_rows} rows were asked for",
            f"the matrix has {matrix.num_rows} and padding cannot remove any",
        )
    return dataclasses.replace(
        matrix,
        index=jnp.pad(matrix.index, ((0, extra), (0, 0)), mode="edge"),
        start=jnp.pad(matrix.start, (0, extra), mode="edge"),
        write=jnp.pad(matrix.write, ((0, extra), (0, 0))),
    )


def windowed(matrix: TimestepMatrix, context: int = 0) -> TimestepMatrix:
    """Feeds only the frames in work to the network, and some finished ones before them.

    Frames in work are those between their first and their last step. All windows have
    the size of the largest; a window near the ends is moved inwards.

    Args:
        matrix: Any matrix; frozen columns are context.
        context: Finished frames kept before the first frame in work.
    """
    index = np.asarray(matrix.index)
    begun = np.cumsum(index[1:] != index[:-1], axis=0) > 0
    unfinished = index[:-1] != index[-1:]
    in_work = begun & unfinished
    any_in_work = in_work.any(axis=1)
    first = np.where(any_in_work, in_work.argmax(axis=1), 0)
    last = matrix.latent_frames - 1 - in_work[:, ::-1].argmax(axis=1)
    size = int(np.max(np.where(any_in_work, last - first + 1, 1), initial=1)) + context
    window = min(size, matrix.latent_frames)
    start = np.clip(first - context, 0, matrix.latent_frames - window)
    return dataclasses.replace(matrix, start=jnp.asarray(start, jnp.int32), window=window)


def level_at(matrix: TimestepMatrix, index: Int[Array, "*rows F"]) -> Array:
    """Returns the noise levels f32[*rows, F] of level indices."""
    if matrix.levels.ndim == 1:
        return matrix.levels[index]
    return matrix.levels[index, jnp.arange(index.shape[-1])]


def times(matrix: TimestepMatrix) -> Float[Array, "rows F"]:
    """Returns the noise level of every frame at every row."""
    return level_at(matrix, matrix.index)


def _times_on_host(matrix: TimestepMatrix) -> np.ndarray:
    """Like `times`, in NumPy: nothing is compiled."""
    levels, index = np.asarray(matrix.levels), np.asarray(matrix.index)
    grids = levels.reshape(len(levels), -1)
    return np.broadcast_to(grids, (len(grids), index.shape[1]))[index, np.arange(index.shape[1])]


def cost(matrix: TimestepMatrix) -> Cost:
    """Counts the network calls of a run, without running it.

    Example:
        >>> cost(lag_matrix(jnp.array([1.0, 0.5, 0.0]), 3, lag=1))
        Cost(calls=4, frame_evaluations=12, first_output_call=2)
    """
    level = _times_on_host(matrix)
    moving = level[1:] != level[:-1]
    called = moving.any(axis=1) | np.asarray(matrix.write).any(axis=1)
    finishes = (moving & (level[1:] == level[-1:])).any(axis=1)
    calls = int(called.sum())
    first = int(called[: int(finishes.argmax()) + 1].sum()) if finishes.any() else 0
    return Cost(calls, calls * matrix.window, first)


def unseen(matrix: TimestepMatrix, frames: Sequence[int]) -> list[int]:
    """Returns those of `frames` that no call of the network is shown."""
    index, start = np.asarray(matrix.index), np.asarray(matrix.start)
    first = start[(index[1:] != index[:-1]).any(axis=1)]
    return [
        frame
        for frame in frames
        if len(first) and not ((first <= frame) & (frame < first + matrix.window)).any()
    ]


def validate(matrix: TimestepMatrix, process: Process | None = None) -> TimestepMatrix:
    """Checks a matrix on the host and returns it.

    Args:
        matrix: The matrix.
        process: The process that bounds its levels; None leaves that out.

    Raises:
        ConfigError: If the grid does not descend to 0 or exceeds the process, an index lies
            outside the grid or goes back to more noise, a frame that moves does not end
            clean, a frame moves outside its window, or a frame is written to the cache
            twice at a level. The message names the row and the frame.
    """
    levels, index = np.asarray(matrix.levels), np.asarray(matrix.index)
    _check_levels(levels, process)
    steps = matrix.num_steps
    _refuse(
        (index < 0) | (index > steps),
        f"has a level index outside 0 to {steps}",
        "build the matrix with lag_matrix, or clip its indices",
    )
    _refuse(
        index[1:] < index[:-1],
        "goes back to a noisier level in the next row",
        "indices must not decrease from row to row",
    )
    moves = (index[0] != index[-1])[None]
    _refuse(
        moves & (index[-1:] != steps),
        "is moved but does not end clean",
        f"end its column at index {steps}, or freeze it",
        first_row=matrix.num_rows,
    )
    frames = np.arange(matrix.latent_frames)[None]
    start = np.asarray(matrix.start)[:, None]
    if matrix.window > matrix.latent_frames or matrix.window < 1:
        raise ConfigError(
            f"the window has {matrix.window} frames",
            f"the matrix has {matrix.latent_frames}",
            "use windowed(matrix), which chooses a window",
        )
    outside = (frames < start) | (frames >= start + matrix.window)
    advice = f"choose start so that the window of {matrix.window} frames covers it"
    _refuse(outside & (index[1:] != index[:-1]), "moves outside of its window", advice)
    written = np.asarray(matrix.write)
    latest = np.maximum.accumulate(np.where(written, index[:-1], -1))  # level of the last writing
    _refuse(outside & written, "is written to the cache outside of its window", advice)
    _refuse(
        written[1:] & (latest[:-1] == index[1:-1]),
        "is written to the cache a second time",
        "write each frame once, when it is clean, or once at each level",
        first_row=1,
    )
    return matrix


def _check_levels(levels: np.ndarray, process: Process | None) -> None:
    grids = levels.reshape(levels.shape[0], -1)
    rises = ~np.isfinite(grids)
    rises[1:] |= grids[1:] > grids[:-1]
    if rises.any():
        place, value = _place(levels, rises)
        raise ConfigError(
            f"the noise levels do not descend: {place} is {value:g}",
            "a grid goes from noise to clean",
            "sort it from 1 to 0, or use linspace_levels",
        )
    left = (grids != 0) & (np.arange(len(grids)) == len(grids) - 1)[:, None]
    if left.any():
        place, value = _place(levels, left)
        why, fix = f"it is {place}, and a run ends at exactly 0", "append 0 to the grid"
        raise ConfigError(f"the last noise level is {value:g}", why, fix)
    beyond = grids > process.t_max * (1 + 1e-6) if process is not None else np.zeros(0, bool)
    if process is not None and beyond.any():
        place, value = _place(levels, beyond)
        raise ConfigError(
            f"a noise level is {value:g}",
            f"the process of this system ends at {process.t_max:g}, and it is {place}",
            f"use levels of 0 to {process.t_max:g}",
        )


def _place(levels: np.ndarray, bad: np.ndarray) -> tuple[str, float]:
    """Says where the first bad level of a grid is, and what it is."""
    row, frame = (int(i) for i in np.argwhere(bad)[0])
    of = f" of frame {frame}" if levels.ndim > 1 else ""
    return f"level {row} of {len(levels) - 1}{of}", float(levels.reshape(bad.shape)[row, frame])


def _refuse(bad: np.ndarray, what: str, fix: str, first_row: int = 0) -> None:
    """Raises an error that names the first entry of `bad`."""
    if bad.any():
        row, frame = (int(i) for i in np.argwhere(bad)[0])
        raise ConfigError(
            f"row {row + first_row}, frame {frame} of the timestep matrix {what}", fix=fix
        )


_NOISE_COLOR = np.array([38, 28, 84])
_CLEAN_COLOR = np.array([250, 221, 120])
_FROZEN_TINT = np.array([96, 170, 160])


def plot(matrix: TimestepMatrix, cell: int = 8) -> UInt8[np.ndarray, "height width 3"]:
    """Draws the matrix: rows from top to bottom, frames from left to right.

    Dark cells are noise and light cells clean; frozen columns are green. Cells that are in
    the window neither of the step before nor of the step after their row are dimmed.

    Args:
        matrix: The matrix.
        cell: Side of one entry in pixels, with a border of one pixel from 3 on.

    Example:
        >>> plot(synchronous(jnp.array([1.0, 0.5, 0.0]), 5), cell=8).shape
        (24, 40, 3)
    """
    level = _times_on_host(matrix)
    share = (level / max(float(level.max()), 1e-6))[..., None]
    colors = share * _NOISE_COLOR + (1 - share) * _CLEAN_COLOR
    frozen = (level == level[:1]).all(axis=0)
    colors[:, frozen] = (colors[:, frozen] + _FROZEN_TINT) / 2
    frames = np.arange(matrix.latent_frames)[None]
    start = np.asarray(matrix.start)[:, None]
    fed = (frames >= start) & (frames < start + matrix.window)
    shown = np.pad(fed, ((0, 1), (0, 0))) | np.pad(fed, ((1, 0), (0, 0)))
    colors = np.where(shown[..., None], colors, colors * 0.5)
    image = np.kron(colors, np.ones((cell, cell, 1))).round().astype(np.uint8)
    if cell >= 3:
        image[cell - 1 :: cell] = 255
        image[:, cell - 1 :: cell] = 255
    return image
