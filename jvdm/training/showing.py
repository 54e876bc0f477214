"""Sample sheets of a training run: a row of frames per clip, under its label."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jvdm.arrays import Float, PyTree, UInt8
from jvdm.parallel import processes
from jvdm.training.objective import Objective, Preview

MARGIN, LABEL_HEIGHT = 2, 12  # pixels


def write_preview(
    path: Path, preview: Preview, objective: Objective, params: PyTree, data: PyTree
) -> None:
    """Writes a PNG of what `preview` makes of `params`; one process does, the others wait."""
    params = processes.fetch(params)
    if processes.writes():
        clips, labels = preview.render(objective, params, data)
        write_rows(path, np.asarray(clips), labels)
    processes.barrier(f"preview {path}")


def write_rows(
    path: Path,
    clips: Float[np.ndarray, "B T H W 3"] | UInt8[np.ndarray, "B T H W 3"],
    labels: Sequence[str],
    columns: int = 9,
) -> None:
    """Writes a PNG with `columns` frames of each clip, evenly spaced, first and last included.

    Args:
        path: File to write; folders that are missing are made.
        clips: RGB bytes, or numbers in 0..1; values outside are clipped.
        labels: One line of text per clip.
        columns: Frames per clip.
    """
    from PIL import Image, ImageDraw

    count, length, height, width = clips.shape[:4]
    picks = np.linspace(0, length - 1, columns).round().astype(int)
    row, column = height + MARGIN + LABEL_HEIGHT, width + MARGIN
    sheet = Image.new("RGB", (columns * column, count * row), "white")
    draw = ImageDraw.Draw(sheet)
    pixels = clips
    if clips.dtype != np.uint8:
        pixels = (np.clip(np.asarray(clips, np.float32), 0, 1) * 255).round().astype(np.uint8)
    for y, (clip, label) in enumerate(zip(pixels, labels, strict=True)):
        draw.text((MARGIN, y * row), label, fill="black")
        for x, frame in enumerate(picks):
            sheet.paste(Image.fromarray(clip[frame]), (x * column, y * row + LABEL_HEIGHT))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
