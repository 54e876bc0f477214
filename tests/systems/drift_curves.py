"""Streams of published methods, of none and of a naive one: what is seen of them as they go on.

python -m tests.systems.drift_curves WEIGHTS FRAMES[xSEEDS] [SYSTEM...]

Objects that rest are asked for, so that what changes is a fault. `at once` is a clip of all frames;
`naive` makes clips of the length of training, each of which begins with the last picture of the one
before. All systems of the table if none is named, two seeds of each of four prompts if none are
said. Columns:

ms      processor time of a frame, of all cores, after the first chunks
seam    largest change where a chunk begins over the median change (`streams.measure_borders`)
right   share of frames in which the colour of the prompt is one piece and no other is seen, in each
        quarter of the frames
drift   mean difference of means and deviations of colours in each later quarter to those of the
        first one, in levels of 255
"""

import itertools
import sys
import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jvdm
from jvdm.evaluation import streams
from jvdm.evaluation.hue import track
from jvdm.evaluation.objects import STRAY_AREA
from jvdm.pipeline import Pipeline, Request, foresight, streaming
from jvdm.world.scene import COLORS
from tests.systems.long_clips import PROMPTS

SYSTEMS = ("wave", "fvdm", "ar_diffusion", "streamdit", "fifo", "diffusion_forcing", "vid_gpt")
SYSTEMS += ("skyreels_v2", "longlive", "rolling_forcing")
PARTS, WARM, FIRST_SEED = 4, 2, 7
QUIET: dict[str, Any] = {"progress": False, "output_type": "np"}
Made = tuple[list[np.ndarray], float]


def stream_of(pipe: Pipeline, prompt: str, rules: dict[str, int]) -> Made:
    """Returns the chunks of a stream, and the processor time of a frame in ms."""
    request = Request(prompt=prompt, **rules)
    parts, spent, since = [], [], time.process_time()
    for frames in foresight.chunks(pipe, streaming.prepare_stream(pipe, request, {})):
        parts.append(frames)
        spent.append(time.process_time() - since)
        since = time.process_time()
    return parts, 1e3 * float(np.median(spent[WARM:])) / len(parts[-2])


def clip_of(pipe: Any, prompt: str, rules: dict[str, int]) -> Made:
    """Returns the latent frames of a clip that is made at once, and the time as of a stream."""
    for _ in range(2):  # the first one compiles
        since = time.process_time()
        video = pipe(prompt, **rules, **QUIET)
        spent = time.process_time() - since
    stride = pipe.system.vae.strides[0]
    return np.split(video, range(1, len(video), stride)), 1e3 * spent / len(video)


def naive(pipe: Any, prompt: str, rules: dict[str, int]) -> Made:
    """Returns clips that each begin with the last picture of the one before, and their time."""
    parts, spent, told = [], [], {}
    while sum(map(len, parts)) < rules["num_frames"]:
        since = time.process_time()
        video = pipe(prompt, **told, seed=1000 * rules["seed"] + len(parts), **QUIET)
        spent.append(time.process_time() - since)
        parts.append(video[len(told) :])
        told = {"image": video[-1]}
    return parts, 1e3 * float(np.median(spent[WARM:])) / len(parts[-1])


def row_of(parts: list[np.ndarray], color: int) -> np.ndarray:
    """Returns seam, shares of right frames and drifts of a film."""
    video = np.concatenate(parts).astype(np.float32) / 255
    borders = [n for n in np.cumsum([len(part) for part in parts])[:-1].tolist() if n > 1]
    asked = jnp.full((1, 1), color), jnp.ones((1, 1), bool)
    tracks = jax.jit(track)(jnp.asarray(video[None]), *asked)
    right = (tracks.pieces[0, :, 0] == 1) & (tracks.stray[0] <= STRAY_AREA)
    quarters = np.array_split(video, PARTS)
    seen = [float(part.mean()) for part in np.array_split(np.asarray(right), PARTS)]
    drift = [255 * streams.colour_distance(quarters[0], part) for part in quarters[1:]]
    return np.array([streams.measure_borders(video, borders)["seam"], *seen, *drift])


def main(weights: str, asked: str, names: tuple[str, ...]) -> None:
    """Prints a row for each system."""
    num_frames, _, count = asked.partition("x")
    seeds = range(FIRST_SEED, FIRST_SEED + int(count or 2))
    films = len(PROMPTS) * len(seeds)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {films} films")
    plain = {"at once": clip_of, "naive": naive}
    for name in names or (*plain, *SYSTEMS):
        make = plain.get(name, stream_of)
        pipe = jvdm.load(weights, system=None if name in plain else name, progress=False)
        rows, spent = [], []
        for (prompt, color), seed in itertools.product(PROMPTS, seeds):
            parts, ms = make(pipe, prompt, {"seed": seed, "num_frames": int(num_frames)})
            rows.append(row_of(parts, COLORS.index(color)))
            spent.append(ms)
        seam, *more = np.mean(rows, 0)
        cells = [f"{x:.2f}" for x in more]
        right, drift = " ".join(cells[:PARTS]), " ".join(cells[PARTS:])
        ends = f"seam {seam:5.2f}  right {right}  drift {drift}"
        print(f"{name:<18} ms {np.mean(spent):5.1f}  {ends}", flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "[0-9]+ frames are more")
    main(sys.argv[1], sys.argv[2], tuple(sys.argv[3:]))
