"""Two prompts in one clip of 69 frames, by systems that need no training: a table.

python -m tests.systems.two_prompts [PAIRS] [STEPS] [NAME ...]
python -m tests.systems.two_prompts open [PAIRS] [STEPS] [NAME ...]

An object that rests has another colour from 2.75 s on, so all else that changes is a fault:

first    share of clips whose first 21 frames show one object, of the first colour
second   share of clips whose last 21 frames show one object, of the second colour
moved    how far the object of the last frames stands from that of the first, in widths of the
         picture, where both are seen
scene    how much the picture changes, in levels of 255: the median over clips of the mean
         difference of the median frames of the two parts
jump     largest change from a frame to the next, in median changes of short clips

With `open` the second prompt leaves the colour out, and says of some that they move: what is shown
stays the same object only if something else than the prompt says so. Tiles share six, three or no
latent frames (`ditctrl 3`), with the keys of the tile before or their own. `first` is as above;
`kept` are clips whose last 21 frames show one object, of the colour of the first prompt.
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
QUIET: dict[str, Any] = {"progress": False, "output_type": "np"}
PAIRS = (
    ("large", "ball", "red", "blue"),
    ("small", "box", "blue", "yellow"),
    ("large", "can", "green", "red"),
    ("small", "ball", "yellow", "green"),
)
OPEN = (
    ("large red ball", "large ball rolls to the left"),
    ("large blue box", "large box slides to the right"),
    ("large green can", "large can rests"),
    ("small yellow ball", "small ball rests"),
    ("large purple ball", "large ball rests"),
    ("small red box", "small box slides to the left"),
)
TILES = Tiles(9, 6, pairs=True)
SYSTEMS: dict[str, dict[str, Any]] = {
    "sections alone": {},
    "own keys": {"tiles": TILES, "policy": TileBefore(layers=0.0)},
    "ditctrl": {"tiles": TILES, "policy": TileBefore()},
    "all layers": {"tiles": TILES, "policy": TileBefore(layers=1.0)},
}
TILED: dict[str, dict[str, Any]] = {
    f"{name} {shared}": {"tiles": Tiles(9, shared, pairs=True), "policy": policy}
    for shared in (6, 3, 0)
    for name, policy in (("own keys", TileBefore(layers=0.0)), ("ditctrl", TileBefore()))
}


def one_object(part: np.ndarray, colors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns in which parts of clips 0..1 one object of its colour is seen, and where."""
    active = jnp.ones((len(part), 1), bool)
    tracks = track(jnp.asarray(part), jnp.asarray(colors[:, None]), active)
    place = np.median(np.asarray(tracks.center)[:, :, 0], 1) / GRID
    return np.asarray(count_right(tracks, active)), place


def measured(frames: np.ndarray, usual: float, colors: np.ndarray) -> dict[str, float]:
    """Returns the columns of one system, of clips 0..1; `usual` is a change of short clips."""
    parts = (frames[:, :JUDGED], frames[:, -JUDGED:])
    seen = [one_object(part, colors[:, k]) for k, part in enumerate(parts)]
    (first, one), (second, two) = seen
    both, moved = first & second, np.linalg.norm(one - two, axis=-1)
    medians = [np.median(part, 1) for part in parts]
    changes = np.abs(np.diff(frames, axis=1)).mean((2, 3, 4))
    return {
        "first": float(first.mean()),
        "second": float(second.mean()),
        "moved": float(moved[both].mean()) if both.any() else float("nan"),
        "scene": float(255 * np.median(np.abs(medians[0] - medians[1]).mean((1, 2, 3)))),
        "jump": float((changes.max(1) / usual).mean()),
    }


def made(pipe: Any, changes: dict[str, Any], told: list[list[str]], steps: int) -> np.ndarray:
    """Returns clips 0..1 of a changed system, each of both prompts of its number."""
    sampling = dataclasses.replace(pipe.system.sampling, **changes)
    own = dataclasses.replace(pipe, system=dataclasses.replace(pipe.system, sampling=sampling))
    rules: dict[str, Any] = {"num_inference_steps": steps, **QUIET}
    films = [
        own(one, prompt_at={CUT / 12: two}, num_frames=WHOLE, seed=7 + n, **rules)
        for n, (one, two) in enumerate(zip(*told, strict=True))
    ]
    return np.stack(films).astype(np.float32) / 255


def main(pairs: int = 4, steps: int = 8, names: Sequence[str] = ()) -> None:
    """Prints a row for each system, or for those that are named."""
    pipe = jvdm.load("tiny_t2v", progress=False)
    told = [
        [f"a {pair[0]} {pair[2 + k]} {pair[1]} rests" for pair in PAIRS[:pairs]] for k in (0, 1)
    ]
    colors = np.array([[COLORS.index(one), COLORS.index(two)] for *_, one, two in PAIRS[:pairs]])
    rules: dict[str, Any] = {"num_inference_steps": steps, **QUIET}
    short = [
        pipe(told[k], num_frames=PART, seed=7 + 100 * k, **rules).astype(np.float32) / 255
        for k in (0, 1)
    ]
    usual = float(np.median(np.abs(np.diff(short[0], axis=1)).mean((2, 3, 4))))
    for name in names or SYSTEMS:
        report(name, measured(made(pipe, SYSTEMS[name], told, steps), usual, colors))
    report("hard cut", measured(np.concatenate(short, 1), usual, colors))


def left_open(pairs: int = 6, steps: int = 6, names: Sequence[str] = ()) -> None:
    """Prints a row for each way of tiling where the second prompt leaves the colour open."""
    pipe = jvdm.load("tiny_t2v", progress=False)
    told = [[f"a {one} rests", f"a {two}"] for one, two in OPEN[:pairs]]
    colors = np.array([COLORS.index(one.split()[1]) for one, _ in OPEN[:pairs]])
    for name in names or TILED:
        films = made(pipe, TILED[name], [list(each) for each in zip(*told, strict=True)], steps)
        first, kept = (
            one_object(part, colors)[0] for part in (films[:, :JUDGED], films[:, -JUDGED:])
        )
        report(name, {"first": float(first.mean()), "kept": float(kept.mean())})


def report(name: str, row: dict[str, float]) -> None:
    """Prints a row."""
    print(f"{name:<16}", "  ".join(f"{key} {value:.2f}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "69 frames are more|denoising will take")
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    table, words = (left_open, sys.argv[2:]) if "open" in sys.argv[1:2] else (main, sys.argv[1:])
    table(*map(int, words[:2]), names=words[2:])
