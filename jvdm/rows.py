"""The rows of a run: the matrix that was given, or the system's, with given frames kept."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from jvdm import samplers
from jvdm.errors import ConfigError, ShapeError
from jvdm.samplers import Process, TimestepMatrix
from jvdm.samplers.matrices import count_rows, level_at, unseen
from jvdm.system import System

# Share of data, per share of noise, that pure noise may stand for where a grid begins below pure
# noise. The `leading` grids of Stable Diffusion's table have .07 with 50 steps and .26 with 4.
MOST_DATA = 1 / 3


def matrix_of(
    given: TimestepMatrix | None, system: System, settings: Any, latent_frames: int
) -> TimestepMatrix:
    """Returns the matrix that was given, or the system's.

    Raises:
        ShapeError: If it is for another number of frames.
        ConfigError: If a frame does not end clean, or a level is not one of the process.
    """
    rules: Any = system.sampling
    if given is None:
        count_rows(getattr(rules.levels, "num_steps", 1), latent_frames)
    matrix: TimestepMatrix = given or rules.matrix(rules.levels(), latent_frames)
    if matrix.latent_frames != latent_frames:
        raise ShapeError(
            f"the timestep matrix has {matrix.latent_frames} latent frames",
            f"{settings.num_frames} frames are {latent_frames} latent frames",
            f"use num_frames={system.vae.num_frames(matrix.latent_frames)}",
        )
    samplers.validate(matrix, system.process)
    last = np.asarray(level_at(matrix, matrix.index[-1]))
    if last.any():
        frame = int(last.argmax())
        raise ConfigError(
            f"latent frame {frame} stays at noise level {last[frame]:g} to the last row",
            "a frame of a video ends clean",
            "freeze frames that are given without a level",
        )
    return matrix


def starts_noisy(matrix: TimestepMatrix, process: Process) -> np.ndarray:
    """Returns bool[F]: which frames start from noise alone.

    They start at the first level of their grid, and little of the data is left there: published
    grids may begin a little below pure noise.
    """
    index = np.asarray(matrix.index[0])
    level = level_at(matrix, matrix.index[0])
    data, noise = np.asarray(process.alpha(level)), np.asarray(process.sigma(level))
    return (index == 0) & (data <= MOST_DATA * noise)


def keep_given(matrix: TimestepMatrix, noisy: np.ndarray, known: Sequence[Any]) -> TimestepMatrix:
    """Freezes the frames that are given clean.

    Args:
        matrix: The matrix of the run.
        noisy: Per frame, whether it starts from noise alone (`starts_noisy`).
        known: What is given, each with its `columns`; `edited` ones are no more than starts.

    Raises:
        ConfigError: If nothing says what a frame starts from, or no call sees a given frame.
    """
    there = {column for entry in known for column in entry.columns}
    missing = sorted(set(np.flatnonzero(~noisy).tolist()) - there)
    if missing:
        frame = missing[0]
        level = float(level_at(matrix, matrix.index[0])[frame])
        raise ConfigError(
            f"latent frames {', '.join(map(str, missing))} do not start as noise",
            f"row 0 has frame {frame} at noise level {level:g}, and nothing says what it shows",
            "give image, last_image or video, or a matrix that starts at the noisiest level",
        )
    clean = [c for entry in known if not getattr(entry, "edited", False) for c in entry.columns]
    if not clean:
        return matrix
    matrix = samplers.freeze(matrix, clean)
    if hidden := unseen(matrix, clean):
        raise ConfigError(
            f"latent frames {', '.join(map(str, hidden))} are given",
            f"no window of {matrix.window} latent frames shows them to the network",
            "use a larger window, or give nothing",
        )
    return matrix


def follow_motion(matrix: TimestepMatrix, known: Sequence[Any], system: System) -> TimestepMatrix:
    """Lets frames of a video that is edited start at levels of their own, if the rule says so.

    Args:
        matrix: The matrix of the run, on the grid of the rule.
        known: What is given, each with its `frames`; `edited` ones move the levels.
        system: Its rule of levels moves them if it is a `MotionLevels`.

    Raises:
        ConfigError: If several videos are edited together: they would share the levels of one.
    """
    levels: Any = system.sampling.levels
    clips = [entry.frames for entry in known if getattr(entry, "edited", False)]
    if not isinstance(levels, samplers.MotionLevels) or not clips:
        return matrix
    if len(clips[0]) > 1:
        what = f"{len(clips[0])} videos, whose noise follows their motion"
        raise ConfigError(what, "they would share the levels of one", "edit one at a time")
    ends = [system.vae.num_frames(count + 1) for count in range(matrix.latent_frames)]
    grids = levels.of_motion(samplers.motion_of(clips[0][0], ends))
    return samplers.validate(dataclasses.replace(matrix, levels=grids), system.process)


def row_from(when: str, matrix: TimestepMatrix) -> int:
    """Returns the row that something changes at.

    Args:
        when: `row8`, or a noise level: the first row whose frames are at it or below.
        matrix: The rows of the run.

    Raises:
        ConfigError: If it is neither, or no row after the first one, or if frames in work have
            different levels, so that a level is no row.
    """
    found = re.fullmatch(r"row ?(\d+)", when.strip())
    row = int(found[1]) if found else _row_at(when, matrix)
    if not 0 < row < matrix.num_rows:
        why = "the prompt itself is told from row 0 on, and this is no later one"
        fix = f"rows are 1 to {matrix.num_rows - 1}, from the noisiest to the cleanest"
        raise ConfigError(f"switch is at {when}", why, fix)
    return row


def _row_at(when: str, matrix: TimestepMatrix) -> int:
    """Returns the first row whose moving frames are at a level or below; the end if none is."""
    try:
        level = float(when)
    except ValueError:
        level = np.nan
    if not 0 < level < np.inf:
        why = "it is a noise level above 0, or a row"
        raise ConfigError(f"switch is at {when!r:.80}", why, "write 0.6, or row8")
    levels = np.asarray(samplers.times(matrix))[:-1]
    moving = np.diff(np.asarray(matrix.index), axis=0) != 0
    highest = np.where(moving, levels, 0.0).max(1)
    lowest = np.where(moving, levels, np.inf).min(1)
    mixed = np.flatnonzero(lowest < highest)
    if mixed.size:
        span = f"{lowest[mixed[0]]:g} to {highest[mixed[0]]:g}"
        why = f"the frames of row {mixed[0]} are at levels from {span}"
        raise ConfigError(f"switch is at noise level {level:g}", why, "name a row: row8")
    there = moving.any(1) & (highest <= level * (1 + 1e-6))  # levels are of float32
    return int(np.argmax(np.append(there, True)))
