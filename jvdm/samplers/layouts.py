"""Timestep matrices by their times, by their stages, and from both ends."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float
from jvdm.errors import ConfigError
from jvdm.samplers.matrices import TimestepMatrix, count_rows, from_index, times


def from_times(
    levels: Float[Array, "rows F"] | Float[np.ndarray, "rows F"],
) -> TimestepMatrix:
    """Returns the matrix in which every frame has these noise levels, bit by bit.

    Its grid has every level that occurs, and 0. All frames are fed in every step.

    Args:
        levels: Level of each frame at each row; `times` of the result.

    Raises:
        ConfigError: If there are fewer than two rows, no frames, or a level that is no number.

    Example:
        >>> from_times(jnp.array([[1.0, 1.0], [0.5, 1.0], [0.0, 0.5], [0.0, 0.0]])).index.tolist()
        [[0, 0], [1, 0], [2, 1], [2, 2]]
    """
    given = np.asarray(levels, np.float32)
    if len(given) < 2 or not given.size or not np.isfinite(given).all():
        what = f"noise levels of {len(given)} rows of {given.shape[1]} latent frames"
        fix = "give a finite level for every frame at every row, from noise to clean"
        raise ConfigError(what, "a run leads from one row to the next", fix)
    grid = np.unique(np.append(given, np.float32(0.0)))
    index = len(grid) - 1 - np.searchsorted(grid, given)
    return from_index(jnp.asarray(grid[::-1].copy()), index)


def joined(first: TimestepMatrix, second: TimestepMatrix) -> TimestepMatrix:
    """Returns the run that does the rows of `first`, and then those of `second`.

    Stages may differ in grids, lags, windows and what they write: a clip is begun together and
    finished as a wave, or begun in few large steps and finished in many small ones.

    Args:
        first: The rows before; where they stop the others begin, so they need not end clean.
        second: The rows after.

    Returns:
        The matrix; its window is the larger of both.

    Raises:
        ConfigError: If a frame has another level at the end of `first` than where `second` begins.

    Example:
        >>> together = from_times(jnp.array([[1.0, 1.0], [0.5, 0.5]]))
        >>> wave = from_times(jnp.array([[0.5, 0.5], [0.0, 0.5], [0.0, 0.0]]))
        >>> times(joined(together, wave)).tolist()
        [[1.0, 1.0], [0.5, 0.5], [0.0, 0.5], [0.0, 0.0]]
    """
    before, after = np.asarray(times(first)), np.asarray(times(second))
    if before.shape[1] != after.shape[1]:
        what = f"stages of {before.shape[1]} and {after.shape[1]} latent frames"
        raise ConfigError(what, "both are of one video", "make them for as many latent frames")
    apart = before[-1] != after[0]
    if apart.any():
        frame = int(apart.argmax())
        was, then = before[-1, frame], after[0, frame]
        what = f"row {first.num_rows}, frame {frame} of the timestep matrix is at level {was:g}"
        why = f"the stage that follows begins at {then:g}"
        raise ConfigError(what, why, "let a stage begin where the one before it stops")
    matrix = from_times(np.concatenate([before, after[1:]]))
    window = max(first.window, second.window)
    start = np.minimum(np.concatenate([first.start, second.start]), before.shape[1] - window)
    write = np.concatenate([first.write, second.write])
    return dataclasses.replace(
        matrix,
        start=jnp.asarray(start, jnp.int32),
        write=jnp.asarray(write),
        window=window,
        lookback=max(first.lookback, second.lookback),
    )


def trapezoid_matrix(
    levels: Float[Array, " levels"], latent_frames: int, lag: int = 1, block: int = 1
) -> TimestepMatrix:
    """Lets frames start from both ends of the video, the middle last.

    `index[k, f] = clip(k - lag * (min(f, F - 1 - f) // block), 0, S)`: where both ends are given
    or known best, what is between them follows.

    Args:
        levels: Grid of `S + 1` levels.
        latent_frames: Number of latent frames `F`.
        lag: Rows between neighbouring blocks.
        block: Latent frames per block, from either end.

    Raises:
        ConfigError: If `lag` is negative, or `block` or `latent_frames` not positive, or there are
            more than `MAX_CELLS` cells.

    Reference: Diffusion Forcing, arXiv:2407.01392, the scheduling called trapezoid in its code,
    where the last frame starts with the second one instead of the first.

    Example:
        >>> trapezoid_matrix(jnp.array([1.0, 0.5, 0.0]), 3).index.tolist()
        [[0, 0, 0], [1, 0, 1], [2, 1, 2], [2, 2, 2]]
    """
    if lag < 0 or block < 1 or latent_frames < 1:
        raise ConfigError(
            f"lag {lag}, block {block}, {latent_frames} latent frames from both ends",
            "a wave needs lag 0 or more, and at least one frame per block and per video",
            "use lag 1 and block 1",
        )
    steps = levels.shape[0] - 1
    last = (latent_frames - 1) // 2 // block
    rows = np.arange(count_rows(steps, latent_frames, lag * last) + 1)
    frames = np.arange(latent_frames)
    waits = lag * (np.minimum(frames, frames[::-1]) // block)
    return from_index(levels, np.clip(rows[:, None] - waits[None], 0, steps))
