"""Streams of published methods beside the clip of the same seed: seams, drift and speed."""

import time
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jvdm.errors import ConfigError
from jvdm.evaluation.temporal import frame_change, seam_index
from jvdm.fidelity import psnr
from jvdm.pipeline import Pipeline, Request, foresight, streaming

PROMPTS = ("a large red ball rolls to the left", "a small blue box slides to the right")
WARM = 2  # chunks before those that are timed: they compile
COLUMNS = ("calls/chunk", "calls/s", "frames/s", "seam", "borders", "drift", "motion", "PSNR")


def measure_stream(
    pipe: Pipeline, prompt: str, seed: int, num_frames: int, clip: np.ndarray
) -> dict[str, Any]:
    """Makes a stream and measures it.

    Args:
        pipe: A system that can be streamed.
        prompt: What is to be seen.
        seed: Seed of the video.
        num_frames: Frames to make, twice as many as the clip has or more.
        clip: `[T, H, W, 3]`, the clip of the same seed whose frames are made together.

    Returns:
        `calls/chunk` of the network with all branches; `calls/s` and `frames/s` after the first
        chunks, `slowdown` of the last half over the first; `seam`, the largest change at a border
        of chunks over the median change (`seam_index`), `seam at` the frame after it, `borders` the
        median change at borders over that elsewhere; `drift`, the mean difference of the means
        and deviations of colours between the first and the last frames, as many as the clip has,
        in levels of 255; `motion`, the change from frame to frame of the last over that of the
        first; `PSNR` in dB of the first frames to the clip; `changes` from frame to frame, in
        levels of 255.

    Raises:
        ConfigError: If there are too few frames.
    """
    if num_frames < 2 * len(clip):
        what = f"a stream of {num_frames} frames"
        raise ConfigError(what, "its ends are compared", f"make {2 * len(clip)} or more")
    request = Request(prompt=prompt, seed=seed, num_frames=num_frames)
    job = streaming.prepare_stream(pipe, request, {})
    parts, seconds, since = [], [], time.perf_counter()
    for frames in foresight.chunks(pipe, job):
        parts.append(frames)
        seconds.append(time.perf_counter() - since)
        since = time.perf_counter()
    video = np.concatenate(parts).astype(np.float32) / 255.0
    borders = [n for n in np.cumsum([len(part) for part in parts])[:-1].tolist() if n > 1]
    timed, half = seconds[WARM:-1], len(seconds[WARM:-1]) // 2
    rows, length = job.rows.cycle.num_rows, len(clip)
    first, last = video[:length], video[-length:]
    return {
        "calls/chunk": float(rows),
        "calls/s": rows / float(np.median(timed)),
        "frames/s": len(parts[-2]) / float(np.median(timed)),
        "slowdown": float(np.median(timed[half:]) / np.median(timed[:half])),
        **measure_borders(video, borders),
        "drift": 255.0 * colour_distance(first, last),
        "motion": _change(last) / max(_change(first), 1e-4),
        "PSNR": float(psnr(jnp.asarray(first[None]), jnp.asarray(clip[None]) / 255.0)[0]),
    }


def measure_borders(video: np.ndarray, borders: Sequence[int]) -> dict[str, Any]:
    """Says how much a video changes where chunks begin.

    Args:
        video: `[T, H, W, 3]`, 0..1.
        borders: First frames of all chunks but the first.

    Returns:
        `seam`, `seam at`, `borders` and `changes`, as of `measure_stream`. The autoencoder itself
        changes more from one latent frame to the next than inside one.
    """
    changes = 255.0 * np.abs(np.diff(video.astype(np.float64), axis=0)).mean((1, 2, 3))
    at_border = np.isin(np.arange(1, len(video)), borders)
    usual = max(float(np.median(changes[~at_border])), 255.0 * 1e-4)
    return {
        "seam": float(seam_index(jnp.asarray(video[None]), borders)[0]),
        "seam at": 1 + int(np.argmax(np.where(at_border, changes, -1.0))),
        "borders": float(np.median(changes[at_border])) / usual,
        "changes": changes.round(2).tolist(),
    }


def colour_distance(one: np.ndarray, two: np.ndarray) -> float:
    """Returns the mean difference of the means and deviations of each colour of two films.

    Args:
        one: `[T, H, W, 3]`, 0..1.
        two: Likewise, of any length.
    """
    moments = [np.stack([x.mean((0, 1, 2)), x.std((0, 1, 2))]) for x in (one, two)]
    return float(np.abs(moments[0] - moments[1]).mean())


def mean_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the means over several streams, and where each stands out and how it changes."""
    single = ("seam at", "changes")
    means = {
        name: round(float(np.mean([row[name] for row in rows])), 3)
        for name in rows[0]
        if name not in single
    }
    return means | {name: [row[name] for row in rows] for name in single}


def text(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the table of several systems."""
    width = max(len(row["system"]) for row in rows)
    lines = [f"{'system':<{width}}  " + "  ".join(f"{name:>11}" for name in COLUMNS)]
    for row in rows:
        cells = (f"{row[name]:.2f}" if name in row else "-" for name in COLUMNS)
        numbers = "  ".join(f"{cell:>11}" for cell in cells)
        lines.append(f"{row['system']:<{width}}  {numbers}")
    return "\n".join(lines)


def _change(video: np.ndarray) -> float:
    return float(frame_change(jnp.asarray(video[None]))[0])
