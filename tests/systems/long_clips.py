"""Clips four times as long as those of training, made by systems that need none: a table.

python -m tests.systems.long_clips [PROMPTS] [STEPS] [NAME ...]

Objects that rest are asked for, so that what changes is a fault. Against a clip of the trained
length with the same seed:

right     share of windows of the trained length in which one object of the colour is seen
object    correlation of a frame with the one a trained length later, less the floor of all clips
detail    what is finer than three pixels, as a share of that of the short clip
flicker   what changes and changes back from frame to frame, as a share of that of the short clip
spectrum  how far its power is from that of the short clip, in octaves: the mean over twelve bands
          of frequencies in time and space (`BANDS`) and over windows of the trained length
fast      the same above a quarter of the highest frequency in time, with its sign
"""

import dataclasses
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jvdm
from jvdm.attention import FusedWindows, SpectralBlend
from jvdm.evaluation.hue import track
from jvdm.evaluation.objects import count_right
from jvdm.evaluation.temporal import jitter
from jvdm.samplers import WindowShuffle
from jvdm.world.scene import COLORS

WINDOW, LONG = 33, 129  # frames
BANDS = ((0.0, 1e-3, 0.25, 1.1), (0.0, 0.125, 0.25, 0.5, 1.1))
"""Borders of bands in time and space, in shares of the highest frequency; the first is rest."""
NOISE = WindowShuffle(8, 4)
SYSTEMS: dict[str, dict[str, Any]] = {
    "direct": {},
    "noise alone": {"noise": NOISE},
    "windows alone": {"policy": FusedWindows(8, 4)},
    "freenoise": {"noise": NOISE, "policy": FusedWindows(8, 4)},
    "blend alone": {"policy": SpectralBlend(9)},
    "freelong": {"noise": NOISE, "policy": SpectralBlend(9)},
}
PROMPTS = [
    (f"a {size} {color} {shape} rests", color)
    for color, size, shape in zip(
        ("red", "blue", "green", "yellow"),
        ("large", "small", "large", "small"),
        ("ball", "box", "can", "ball"),
        strict=True,
    )
]


def fine(frames: np.ndarray) -> float:
    """Returns the mean absolute difference of a frame to the mean of its neighbours."""
    around = sum(np.roll(frames, shift, axis) for axis in (2, 3) for shift in (-1, 1)) / 4
    return float(np.abs(frames - around)[:, :, 1:-1, 1:-1].mean())


def windows(frames: np.ndarray) -> list[np.ndarray]:
    """Returns the windows of the trained length of clips."""
    starts = range(0, frames.shape[1] - WINDOW + 1, WINDOW - 1)
    return [frames[:, at : at + WINDOW] for at in starts]


def power(frames: np.ndarray) -> np.ndarray:
    """Returns the power of the windows of clips in `BANDS`, `[windows, B, times, spaces]`."""
    sizes = (WINDOW, *frames.shape[2:4])
    t, y, x = (2 * np.abs(np.fft.fftfreq(size)) for size in sizes)
    places = (t, np.maximum(y[:, None], x))
    bands = [np.digitize(place, edges) - 1 for place, edges in zip(places, BANDS, strict=True)]
    chosen = [
        np.equal.outer(np.arange(len(edges) - 1), band).astype(np.float64)
        for band, edges in zip(bands, BANDS, strict=True)
    ]
    parts = [part - part.mean((1, 2, 3), keepdims=True) for part in windows(frames)]
    spectra = [(np.abs(np.fft.fftn(part, axes=(1, 2, 3))) ** 2).mean(-1) for part in parts]
    return np.einsum("nbthw,it,jhw->nbij", np.stack(spectra), *chosen)


def measured(frames: np.ndarray, short: np.ndarray, colors: np.ndarray) -> dict[str, float]:
    """Returns the columns of one system, of clips 0..1 and the short ones of the same seeds."""
    active = jnp.ones((len(frames), 1), bool)
    seen = [
        count_right(track(jnp.asarray(part), jnp.asarray(colors), active), active)
        for part in windows(frames)
    ]
    centred = frames - np.median(frames[:, ::8], (0, 1))
    one, two = centred[:, :-WINDOW], centred[:, WINDOW:]
    norms = np.sqrt((one**2).sum((2, 3, 4)) * (two**2).sum((2, 3, 4)))
    octaves = np.log2(power(frames) / power(short))
    return {
        "right": float(np.mean(seen)),
        "object": float(((one * two).sum((2, 3, 4)) / norms).mean()),
        "detail": fine(frames) / fine(short),
        "flicker": float(jitter(jnp.asarray(frames)).mean() / jitter(jnp.asarray(short)).mean()),
        "spectrum": float(np.abs(octaves).mean()),
        "fast": float(octaves[..., -1, :].mean()),
    }


def main(prompts: int = 4, steps: int = 8, names: Sequence[str] = ()) -> None:
    """Prints a row for each system, or for those that are named."""
    pipe = jvdm.load("tiny_t2v", progress=False)
    asked = [prompt for prompt, _ in PROMPTS[:prompts]]
    colors = np.array([[COLORS.index(color)] for _, color in PROMPTS[:prompts]])
    rules: dict[str, Any] = {"num_inference_steps": steps, "seed": 7, "progress": False}
    rules |= {"output_type": "np"}
    short = pipe(asked, num_frames=WINDOW, **rules).astype(np.float32) / 255
    print(f"{'short':<14}", measured(np.concatenate([short] * 2, 1), short, colors)["right"])
    for name in names or SYSTEMS:
        sampling = dataclasses.replace(pipe.system.sampling, **SYSTEMS[name])
        own = dataclasses.replace(pipe, system=dataclasses.replace(pipe.system, sampling=sampling))
        frames = own(asked, num_frames=LONG, **rules).astype(np.float32) / 255
        row = measured(frames, short, colors)
        cells = "  ".join(f"{key} {value:.2f}" for key, value in row.items())
        print(f"{name:<14} {cells}", flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "129 frames are more")
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    main(*map(int, sys.argv[1:3]), names=sys.argv[3:])
