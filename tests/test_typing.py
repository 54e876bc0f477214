"""A type checker knows what a call returns, as an editor shows it."""

import importlib.util
import subprocess
import sys

import pytest

USE = """
from typing import assert_type

import jax
import numpy as np
from PIL.Image import Image

import jvdm
from jvdm.media import Image as Frame

pipe = jvdm.load()
assert_type(pipe("a ball"), jvdm.Video)
assert_type(pipe("a ball", seed=3, height=128, callback=lambda step, x: None), jvdm.Video)
assert_type(pipe(["a ball", "a box"]), list[jvdm.Video])
assert_type(pipe("a ball", num_videos=2), list[jvdm.Video])
assert_type(pipe("a ball", output_type="np"), np.ndarray)
assert_type(pipe(["a ball"], output_type="np"), np.ndarray)
assert_type(pipe("a ball", output_type="pil"), list[Image])
assert_type(pipe(["a ball"], output_type="pil"), list[list[Image]])
assert_type(pipe("a ball", output_type="latent"), jax.Array)
video = pipe("a ball")
assert_type(len(video), int)
assert_type(video[2:], jvdm.Video)
assert_type(video[0], Frame)
for frame in video:
    assert_type(frame, Frame)
pipe("a ball", output_type="gif")  # refused
pipe(7)  # refused
"""


@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="pyright is not installed")
def test_pyright_knows_what_a_call_returns(root, tmp_path):
    (tmp_path / "use.py").write_text(USE)
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable]
    command.append(str(tmp_path / "use.py"))
    process = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    refused = [n for n, line in enumerate(USE.splitlines(), 1) if line.endswith("# refused")]
    found = {int(line.split(":")[1]) for line in process.stdout.splitlines() if " - error" in line}
    assert found == set(refused), process.stdout
