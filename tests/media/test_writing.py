"""What is written depends on the frames alone, not on what memory held before."""

import os
import subprocess
import sys

import numpy as np
import pytest

from jvdm.media import LIVE_WRITERS
from jvdm.video import read_video

SIZES = [(16, 32), (32, 32), (64, 64), (96, 96), (160, 320)]
WRITE = f"""
import hashlib, sys
from pathlib import Path
import numpy as np
from jvdm.media.frames import resized
from jvdm.media.writing import WRITERS

path = Path(sys.argv[1])
rng = np.random.default_rng(0)
for height, width in {SIZES}:
    coarse = rng.integers(0, 256, (9, 8, 8, 3), np.uint8)
    WRITERS[path.suffix](path, [resized(frame, height, width) for frame in coarse], 12)
    print(hashlib.sha256(path.read_bytes()).hexdigest())
"""


@pytest.mark.parametrize("ending", [".mp4", ".webm", ".gif"])
def test_equal_frames_give_equal_bytes_whatever_memory_held_before(tmp_path, ending):
    """glibc fills what it hands out with the byte of `MALLOC_PERTURB_`."""
    commands = [
        subprocess.run(
            [sys.executable, "-c", WRITE, str(tmp_path / f"film{ending}")],
            env=os.environ | {"MALLOC_PERTURB_": fill},
            capture_output=True,
            text=True,
            check=True,
        )
        for fill in ("1", "85", "165")
    ]
    hashes = [command.stdout.split() for command in commands]
    assert len(hashes[0]) == len(SIZES) and hashes[0] == hashes[1] == hashes[2]


def test_a_live_film_can_be_watched_half_a_second_after_it_was_made(tmp_path):
    """Of 24 frames, each 6 more can be read before the next is asked for; key frames are rarer."""
    path, seen = tmp_path / "film.mp4", []

    def frames():
        for index in range(24):
            if index > 6:
                seen.append(len(read_video(path)))
            yield np.full((16, 16, 3), 10 * index, np.uint8)

    LIVE_WRITERS[".mp4"](path, frames(), 12.0)
    assert all(index - 6 <= count <= index for index, count in enumerate(seen, 7))
    assert len(read_video(path)) == 24
