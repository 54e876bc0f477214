"""The rows of a run: the matrix that was given, or the system's, with given frames kept."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jvdm import samplers
from jvdm.errors import ConfigError, ShapeError
from jvdm.samplers import TimestepMatrix
from jvdm.samplers.matrices import count_rows, level_at, unseen
from jvdm.system import System


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


def keep_given(
    matrix: TimestepMatrix, starts_noisy: np.ndarray, known: Sequence[Any]
) -> TimestepMatrix:
    """Freezes the frames that are given clean.

    Args:
        matrix: The matrix of the run.
        starts_noisy: Per frame, whether its first level is the noisiest of all.
        known: What is given, each with its `columns`; `edited` ones are no more than starts.

    Raises:
        ConfigError: If nothing says what a frame starts from, or no call sees a given frame.
    """
    there = {column for entry in known for column in entry.columns}
    missing = sorted(set(np.flatnonzero(~starts_noisy).tolist()) - there)
    if missing:
        raise ConfigError(
            f"latent frames {', '.join(map(str, missing))} do not start as noise",
            "nothing says what they show",
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
