"""Rows for networks that keep keys and values: finished frames are written once, then not fed.

A frame that is finished, and all frames before it, is shown to the network once more, at the level
that later rows tell for it (0, or that of a given frame), and its keys and values are kept. From
then on only frames in work are fed. Cached equals recomputed if attention is strictly
frame-causal and no frame that is read has been overwritten (Self-Forcing, arXiv:2506.08009, has
the extra row; MAGI-1, arXiv:2505.13211, lets the writing ride on the next one).

Or every frame is kept at every level that it passes, by the call that moves it on, without a row
more (`cached_by_level`): a frame sees earlier ones as they were at its own level.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float, no_type_check
from jvdm.errors import ConfigError
from jvdm.samplers.matrices import TimestepMatrix, from_index, windowed
from jvdm.samplers.rules import AutoregressiveMatrix, MatrixRule

Slots = Callable[[np.ndarray], Array | np.ndarray]
"""Says in which slot of a cache each frame is kept; -1 where none is."""


def cached(matrix: TimestepMatrix, lookback: int | None = None) -> TimestepMatrix:
    """Adds the rows that write finished frames, and feeds only the frames in work.

    Args:
        matrix: Any matrix; its own windows and writes are not used.
        lookback: Earlier frames that the rows read, at most; None is all of them.

    Returns:
        A matrix with a row more for each group of frames that is finished together, but for the
        last ones, which nobody reads.
    """
    index = np.asarray(matrix.index)
    count, steps = index.shape[1], index.shape[0] - 1
    ends = np.where((index == index[-1:]).all(0), 0, (index != index[-1:]).sum(0))
    front = [int(np.argmax(np.append(ends > row, True))) for row in range(steps + 1)]
    moving = index[1:] != index[:-1]
    last = np.where(moving.any(1), count - moving[:, ::-1].argmax(1), 0)
    window = max([int(last[row]) - front[row] for row in range(steps)] + [1])
    rows, first, writes, made = [index[0]], [], [], 0
    for row in range(steps):
        while made < front[row]:  # in the order of the frames, a window at a time
            part = np.zeros(count, bool)
            part[made : min(made + window, front[row])] = True
            rows.append(index[row])
            first.append(made)
            writes.append(part)
            made += int(part.sum())
        rows.append(index[row + 1])
        first.append(front[row])
        writes.append(np.zeros(count, bool))
    return dataclasses.replace(
        matrix,
        index=jnp.asarray(np.stack(rows), jnp.int32),
        start=jnp.asarray(np.minimum(first, count - window), jnp.int32),
        write=jnp.asarray(np.stack(writes)),
        window=window,
        lookback=min(max(first), count if lookback is None else lookback),
    )


def cached_by_level(matrix: TimestepMatrix, lookback: int | None = None) -> TimestepMatrix:
    """Writes every frame at every level that it passes, and feeds only the frames in work.

    A policy with a cache for each level (`jvdm.attention.LevelBank`) lets a frame read those before
    it as they were at its level. If no frame is forgotten, the run is the synchronous one with
    frame-causal attention, whatever the order of its rows.

    Args:
        matrix: Any matrix; its own windows and writes are not used.
        lookback: Earlier frames that a frame reads, at most; None is all of them.

    Raises:
        ConfigError: If two frames pass a level in one row: neither could read the other there. It
            names the row and the frames.

    Reference: StreamDiffusionV2 (arXiv:2511.07399), a wave of lag 1 and single frames.
    """
    index = np.asarray(matrix.index)
    moving = index[1:] != index[:-1]
    for row in np.flatnonzero(moving.any(1)):
        frames = np.flatnonzero(moving[row])
        at, count = np.unique(index[row, frames], return_counts=True)
        if (count > 1).any():
            level = at[count.argmax()]
            both = frames[index[row, frames] == level][:2]
            raise ConfigError(
                f"row {row} of the timestep matrix has latent frames {both[0]} and {both[1]} at "
                f"level {level}",
                "with a cache for each level one frame passes a level at a time",
                "use single frames one row apart or more: --sampling.matrix.rule lag "
                "--sampling.matrix.rule.lag 1",
            )
    fed, count = windowed(matrix), matrix.latent_frames
    return dataclasses.replace(
        fed,
        write=jnp.asarray(moving),
        lookback=count - 1 if lookback is None else min(count - 1, lookback),
    )


def rewritten(
    levels: Float[Array, " levels"], latent_frames: int, window: int = 1
) -> TimestepMatrix:
    """Shows finished frames once more, so that a cache holds what is told of them now.

    Where the prompt changes, a cache still says what was seen under the old one. `sample` with
    these rows, the latents of the frames that are read, their `address` and the carry returns the
    carry in which their keys and values are those of the new prompt; the latents stay as they are
    (LongLive's recache, arXiv:2509.22622, which lets frames see later ones too; ours do not).

    Args:
        levels: Any grid; its last level is told.
        latent_frames: Frames to write, in their order.
        window: Frames that are shown and written together, at most.
    """
    window = min(window, latent_frames)
    rows = np.arange(-(-latent_frames // window))
    clean = np.full((len(rows) + 1, latent_frames), levels.shape[0] - 1)
    return dataclasses.replace(
        from_index(levels, clean),
        start=jnp.asarray(np.minimum(rows * window, latent_frames - window), jnp.int32),
        write=jnp.asarray(np.arange(latent_frames) // window == rows[:, None]),
        window=window,
    )


def check_cache(matrix: TimestepMatrix, slots: Slots, banks: int = 0) -> TimestepMatrix:
    """Checks that every row finds the earlier frames that it reads, and returns the matrix.

    Args:
        matrix: The matrix.
        slots: Where the attention policy keeps frames (`Policy.slots`).
        banks: For how many levels it keeps them apart (`Policy.banks`).

    Raises:
        ConfigError: If a frame was not written before, or is overwritten already; the message
            names the row and the frame. Or if rows write at levels and the policy does not keep
            them apart, or the other way round.
    """
    moving = np.asarray(matrix.index[1:] != matrix.index[:-1])
    noisy = bool((moving & np.asarray(matrix.write)).any())
    if noisy != bool(banks) or banks and banks < matrix.num_steps:
        raise ConfigError(
            f"rows that write {'at every level' if noisy else 'finished frames, or none'}, "
            f"{matrix.num_steps} steps, and a policy that keeps {banks} levels apart",
            "a cache for each level is written at each, any other one by finished frames",
            f"use --sampling.policy level_bank --sampling.policy.levels {matrix.num_steps} "
            "--sampling.matrix cached --sampling.matrix.by_level True, or neither",
        )
    if not matrix.lookback:
        return matrix
    if banks:
        return _check_banks(matrix, slots, moving, banks)
    frames = np.arange(matrix.latent_frames)
    where, start = np.asarray(slots(frames)), np.asarray(matrix.start)
    write = np.asarray(matrix.write)
    works = moving | write
    held = np.full(int(where.max()) + 2, -1)  # the last one is of frames that are kept nowhere
    for row in np.flatnonzero(works.any(1)):
        window = slice(start[row], start[row] + matrix.window)
        rests = ~works[row, window] & write[:row, window].any(0)  # finished, in a last window
        front = start[row] + int(np.cumprod(rests).sum())
        needed = frames[max(0, front - matrix.lookback) : front]
        missing = needed[held[where[needed]] != needed]
        if len(missing):
            known = int(where.max(initial=-1)) + 1
            raise ConfigError(
                f"row {row} of the timestep matrix reads latent frame {missing[0]} from a cache",
                f"that of this attention policy holds {known} frames, and this one is not there",
                "choose a smaller lookback, or one that holds more: --sampling.policy "
                f"cached_causal --sampling.policy.frames {matrix.lookback}",
            )
        now = frames[write[row] & (where >= 0)]
        held[where[now]] = now
    return matrix


def _check_banks(
    matrix: TimestepMatrix, slots: Slots, moving: np.ndarray, banks: int
) -> TimestepMatrix:
    """Checks what every frame reads of those before it at its level."""
    frames = np.arange(matrix.latent_frames)
    where, index = np.asarray(slots(frames)), np.asarray(matrix.index)
    held = np.full((banks, int(where.max()) + 1), -1)
    for row, frame in np.argwhere(moving):
        level = index[row, frame]
        needed = frames[max(0, frame - matrix.lookback) : frame]
        missing = needed[held[level, where[needed]] != needed]
        if len(missing):
            raise ConfigError(
                f"row {row} of the timestep matrix reads latent frame {missing[0]} at level "
                f"{level} from a cache, for frame {frame}",
                f"that of this attention policy holds {held.shape[1]} frames a level, and this one "
                "is not there: a frame that is given passes no level",
                "choose a smaller lookback, or a larger cache: --sampling.policy.frames "
                f"{matrix.lookback}; and give no frames",
            )
        held[level, where[frame]] = frame
    return matrix


@no_type_check
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CachedMatrix:
    """Writes finished frames to a cache and feeds the frames in work (`cached`, `cached_by_level`).

    Attributes:
        rule: The matrix of all frames.
        lookback: Earlier frames that are read, at most; None is all of them (static).
        flush: Latest finished frames that stay in the cache, beside the sink, where a stream is
            told another prompt (Infinity-RoPE, arXiv:2511.20649); None keeps all (static).
        rewrite: Latest finished frames that are then written again, as what is told now makes them
            (`rewritten`; static).
        cut: Places in time that are left out where a stream is told another prompt: a new shot
            begins, whose first frames the policy pins (LongLive 2: 8); None is no cut (static).
        ahead: Chunks of a stream that are made at most before anybody says what is told with them
            (`jvdm.samplers.speculation`); those of a wrong guess are dropped (static).
        by_level: Whether every frame is written at every level that it passes, instead of once it
            is finished (static).
    """

    rule: MatrixRule = AutoregressiveMatrix()
    lookback: int | None = dataclasses.field(default=None, metadata={"static": True})
    flush: int | None = dataclasses.field(default=None, metadata={"static": True})
    rewrite: int = dataclasses.field(default=0, metadata={"static": True})
    cut: int | None = dataclasses.field(default=None, metadata={"static": True})
    ahead: int = dataclasses.field(default=0, metadata={"static": True})
    by_level: bool = dataclasses.field(default=False, metadata={"static": True})

    def __call__(self, levels: Array, latent_frames: int) -> TimestepMatrix:
        """Returns the matrix; the network's policy must keep keys and values."""
        kept = cached_by_level if self.by_level else cached
        return kept(self.rule(levels, latent_frames), self.lookback)
