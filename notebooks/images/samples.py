"""Makes the moving picture of the README: clips of prompts that training never saw, not selected.

python -m notebooks.images.samples

The prompts are the first of set C of `jvdm evaluate`, and clip `i` has seed `i`. Two CPU cores take
a few minutes.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

import jvdm
from jvdm.evaluation.held_out import SETS, draw
from jvdm.world.captions import caption_text
from jvdm.world.scene import World

FILE = Path(__file__).parent / "samples.webp"
COUNT, COLUMNS = 12, 6
GAP = 4  # pixels between clips
QUALITY = 30  # of WebP; with it the file stays below 300 KB


def prompts(count: int = COUNT) -> list[str]:
    """Returns the first prompts of set C."""
    return [caption_text(tokens) for tokens in draw(SETS["C"], World(), count).tokens]


def grid(clips: list[np.ndarray], columns: int) -> np.ndarray:
    """Returns clips `[T, H, W, 3]` side by side, in rows of `columns`."""
    padding = ((0, 0), (0, GAP), (0, GAP), (0, 0))
    cells = [np.pad(clip, padding, constant_values=255) for clip in clips]
    rows = [np.concatenate(cells[at : at + columns], 2) for at in range(0, len(cells), columns)]
    return np.concatenate(rows, 1)[:, :-GAP, :-GAP]


def write(path: Path, weights: str = "tiny_t2v", count: int = COUNT, **settings: object) -> Path:
    """Makes the clips and writes them as one animation, which plays for ever.

    Args:
        path: The WebP file.
        weights: The model.
        count: Number of clips.
        **settings: Of the call.
    """
    pipe = jvdm.load(weights)
    made = [pipe(said, seed=seed, **settings) for seed, said in enumerate(prompts(count))]
    frames = grid([clip.frames for clip in made], min(COLUMNS, count))
    first, *others = [Image.fromarray(frame) for frame in frames]
    shown = {"duration": round(1000 / made[0].fps), "loop": 0, "quality": QUALITY, "method": 6}
    first.save(path, save_all=True, append_images=others, **shown)
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=FILE)
    print(write(parser.parse_args().output))
