"""Two prompts in one clip of 69 frames, by systems that need no training: a table.

python -m tests.systems.two_prompts [PAIRS] [STEPS] [NAME ...]

An object that rests has another colour from 2.75 s on, so all else that changes is a fault:

first    share of clips whose first 21 frames show one object, of the first colour
second   share of clips whose last 21 frames show one object, of the second colour
moved    how far the object of the last frames stands from that of the first, in widths of the
         picture, where both are seen
scene    how much the picture changes, in levels of 255: the median over clips of the mean
         difference of the median frames of the two parts
jump     largest change from a frame to the next, in median changes of short clips
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
from jvdm.attention import TileBefore
from jvdm.evaluation.hue import GRID, track
from jvdm.evaluation.objects import count_right
from jvdm.samplers import Tiles
from jvdm.world.scene import COLORS

PART, WHOLE, CUT, JUDGED = 33, 69, 33, 21  # frames
PAIRS = (
    ("large", "ball", "red", "blue"),
    ("small", "box", "blue", "yellow"),
    ("large", "can", "green", "red"),
    ("small", "ball", "yellow", "green"),
)
TILES = Tiles(9, 6, pairs=True)
SYSTEMS: dict[str, dict[str, Any]] = {
    "sections alone": {},
    "own keys": {"tiles": TILES, "policy": TileBefore(layers=0.0)},
    "ditctrl": {"tiles": TILES, "policy": TileBefore()},
    "all layers": {"tiles": TILES, "policy": TileBefore(layers=1.0)},
}


def measured(frames: np.ndarray, usual: float, colors: np.ndarray) -> dict[str, float]:
    """Returns the columns of one system, of clips 0..1; `usual` is a change of short clips."""
    active = jnp.ones((len(frames), 1), bool)
    parts = (frames[:, :JUDGED], frames[:, -JUDGED:])
    seen = [
        track(jnp.asarray(part), jnp.asarray(colors[:, k : k + 1]), active)
        for k, part in enumerate(parts)
    ]
    right = [np.asarray(count_right(tracks, active)) for tracks in seen]
    places = [np.median(np.asarray(tracks.center)[:, :, 0], 1) / GRID for tracks in seen]
    both = right[0] & right[1]
    moved = np.linalg.norm(places[0] - places[1], axis=-1)[both]
    medians = [np.median(part, 1) for part in parts]
    changes = np.abs(np.diff(frames, axis=1)).mean((2, 3, 4))
    return {
        "first": float(right[0].mean()),
        "second": float(right[1].mean()),
        "moved": float(moved.mean()) if both.any() else float("nan"),
        "scene": float(255 * np.median(np.abs(medians[0] - medians[1]).mean((1, 2, 3)))),
        "jump": float((changes.max(1) / usual).mean()),
    }


def main(pairs: int = 4, steps: int = 8, names: Sequence[str] = ()) -> None:
    """Prints a row for each system, or for those that are named."""
    pipe = jvdm.load("tiny_t2v", progress=False)
    told = [
        [f"a {pair[0]} {pair[2 + k]} {pair[1]} rests" for pair in PAIRS[:pairs]] for k in (0, 1)
    ]
    colors = np.array([[COLORS.index(one), COLORS.index(two)] for *_, one, two in PAIRS[:pairs]])
    rules: dict[str, Any] = {"num_inference_steps": steps, "progress": False, "output_type": "np"}
    short = [
        pipe(told[k], num_frames=PART, seed=7 + 100 * k, **rules).astype(np.float32) / 255
        for k in (0, 1)
    ]
    usual = float(np.median(np.abs(np.diff(short[0], axis=1)).mean((2, 3, 4))))
    made = {"hard cut": np.concatenate(short, 1)}
    for name in names or SYSTEMS:
        changes = SYSTEMS[name]
        sampling = dataclasses.replace(pipe.system.sampling, **changes)
        own = dataclasses.replace(pipe, system=dataclasses.replace(pipe.system, sampling=sampling))
        films = [
            own(one, prompt_at={CUT / 12: two}, num_frames=WHOLE, seed=7 + n, **rules)
            for n, (one, two) in enumerate(zip(*told, strict=True))
        ]
        made[name] = np.stack(films).astype(np.float32) / 255
        report(name, measured(made[name], usual, colors))
    report("hard cut", measured(made["hard cut"], usual, colors))


def report(name: str, row: dict[str, float]) -> None:
    """Prints a row."""
    print(f"{name:<16}", "  ".join(f"{key} {value:.2f}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "69 frames are more|denoising will take")
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    main(*map(int, sys.argv[1:3]), names=sys.argv[3:])
