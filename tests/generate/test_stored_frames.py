"""Three prompts give the frames that they gave before: bit for bit on the machine that stored them.

`python -m tests.generate.test_stored_frames` stores them anew, for a change that is meant.
"""

import hashlib
import json
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

import jvdm

STORED = Path(__file__).with_name("stored_frames.json")
PROMPTS = (
    "a large red ball rolls to the left",
    "a small blue box falls down, the camera pans right",
    "a green can and a yellow ball stand still",
)


def machine() -> str:
    """Names what rounding depends on: the compiler and the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    found = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    named = {key.strip(): value.strip() for key, value in found.items()}
    model = [named.get(key, "?") for key in ("model name", "cpu family", "model")]
    wide = "avx512f" in named.get("flags", "")
    return f"jaxlib {metadata.version('jaxlib')}, {' '.join(model)}, avx512 {wide}"


def thumbnail(frames: np.ndarray) -> list:
    """Averages squares of 16 x 16 pixels of the first, middle and last frame."""
    t, h, w, c = frames.shape
    blocks = frames[[0, t // 2, -1]].astype(float).reshape(3, h // 16, 16, w // 16, 16, c)
    return np.round(blocks.mean((2, 4)), 1).tolist()


def made(weights: str, index: int) -> np.ndarray:
    """Makes one video, by the shipped model in few steps."""
    steps = {"tiny_t2v": 3}.get(weights)
    pipe = jvdm.load(weights, progress=False)
    return pipe(PROMPTS[index], seed=index, num_inference_steps=steps, progress=False).frames


CASES = [("nano", 0), ("nano", 1), ("nano", 2), ("tiny_t2v", 0)]


@pytest.mark.parametrize(("weights", "index"), CASES)
def test_frames_are_those_that_were_stored(weights, index):
    then = json.loads(STORED.read_text())["videos"][f"{weights} {index}"]
    np.testing.assert_allclose(thumbnail(made(weights, index)), then["thumbnail"], atol=1.0)


@pytest.mark.slow
def test_frames_are_bit_for_bit_those_that_were_stored(run_python):
    """On the machine that stored them, in a process that compiles as users do."""
    stored = json.loads(STORED.read_text())
    if stored["machine"] != machine():
        pytest.skip(f"they were stored on {stored['machine']}, this is {machine()}")
    usual = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": ""}
    said = run_python("-m", "tests.generate.test_stored_frames", "show", check=True, **usual)
    then = {name: video["sha256"] for name, video in stored["videos"].items()}
    assert json.loads(said.stdout) == then


if __name__ == "__main__":
    videos = {}
    for name, number in CASES:
        clip = made(name, number)
        digest = hashlib.sha256(np.ascontiguousarray(clip).data).hexdigest()
        videos[f"{name} {number}"] = {"sha256": digest, "thumbnail": thumbnail(clip)}
    if sys.argv[1:] == ["show"]:
        print(json.dumps({name: video["sha256"] for name, video in videos.items()}))
    else:
        STORED.write_text(json.dumps({"machine": machine(), "videos": videos}) + "\n")
