"""How well chunks of a video agree that is made without a prompt: the table of the system vin.

python -m tests.systems.chunk_agreement STEPS FRAMES WEIGHTS[:FIELD=NUMBER]...
python -m tests.systems.chunk_agreement operations

Each WEIGHTS are those of `configs/vin.py` or of an ablation; a field of the network may be changed.
Nothing is asked for, so that only the tokens and shared frames say what a chunk shows. `agree` is
the cosine between the colours (masses of twelve hues) of a picture and of the one 24 frames later,
less that between different videos; eight latent frames make four chunks. `seam` is the median
change at borders of chunks over the median change elsewhere. True films are those of the world.

`operations` counts those of a call at about the sizes of the paper, beside full attention.
"""

import dataclasses
import sys
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jvdm
from jvdm.models import Conditions, TextStates, VideoDiT
from jvdm.models.interface import InterfaceDiT
from jvdm.products import product_flops
from jvdm.samplers import Call
from jvdm.world.clips import clips
from jvdm.world.scene import World

VIDEOS, APART, HUES = 24, 24, 12


def colours(video: np.ndarray) -> np.ndarray:
    """Returns the mass of each hue in pictures 0..1 `[B, T, H, W, 3]`, vectors of length 1."""
    red, green, blue = np.moveaxis(video, -1, 0)
    chroma = np.ptp(video, axis=-1)
    hue = np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue) / (2 * np.pi) % 1
    place = np.minimum((hue * HUES).astype(int), HUES - 1)
    strong = np.where(chroma > 0.3, chroma, 0.0)
    mass = np.stack([(strong * (place == each)).sum((2, 3)) for each in range(HUES)], -1)
    return mass / np.maximum(np.linalg.norm(mass, axis=-1, keepdims=True), 1e-6)


def row_of(video: np.ndarray, borders: list[int]) -> str:
    """Returns the columns of videos `[B, T, H, W, 3]` in levels."""
    mass = colours(video / 255)
    one, two = mass[:, :-APART], mass[:, APART:]
    change = np.abs(np.diff(video, axis=1)).mean((0, 2, 3, 4))
    inside = np.delete(change, np.asarray(borders) - 1)
    seam = np.median(change[np.asarray(borders) - 1]) / np.median(inside)
    agree, others = ((one * other).sum(-1).mean() for other in (two, np.roll(two, 1, 0)))
    return f"agree {agree - others:.2f}  seam {seam:.2f}  change {change.mean():.2f}"


def true_row(frames: int, borders: list[int]) -> str:
    """Returns the same of the world."""
    world = World(height=64, width=64, num_frames=frames, fps=6.0, substeps=12)
    film = jax.jit(lambda: clips(world, "test", jnp.arange(VIDEOS)).video)()
    return row_of(255 * np.asarray(film), borders)


def _call(model: Any, x: Any, call: Call, text: TextStates) -> Any:
    return lambda params: model.apply({"params": params}, x, call, Conditions(text), None)[0]


def operations() -> None:
    """Prints operations of a call, chunks of 20 latent frames of 24 x 40 cells sharing 8."""
    sizes: Any = {"width": 4096, "depth": 28, "head_dim": 128, "rotary_axes": (32, 48, 48)}
    chunks = InterfaceDiT(**sizes, chunk=20, overlap=8, tokens=512, blocks=4, stride=5)
    text = TextStates(jnp.zeros((1, 256, 4096)), jnp.full((1,), 256))
    for frames in (20, 80, 160, 320):
        x, call = jnp.zeros((1, frames, 24, 40, 16)), Call.at(jnp.ones((1, frames)))
        counts = []
        for model in (VideoDiT(**sizes), chunks):
            made = (model.init, jax.random.key(0), x, call, Conditions(text))
            params = jax.eval_shape(*made)["params"]
            counts.append(product_flops(_call(model, x, call, text), params) / 1e12)
        full, mine = counts
        print(f"{frames} latent frames: {full:.0f} and {mine:.0f} Tflop, {mine / full:.2f}")


def main(steps: int, frames: int, folders: list[str]) -> None:
    """Prints a row for each weights folder."""
    rules: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": 1.0, "seed": 0}
    borders = [4 * latent - 3 for latent in range(3, (frames - 1) // 4 + 1, 2)]
    print(f"{'true films':<34}{true_row(frames, borders)}", flush=True)
    for told in folders:
        folder, _, change = told.partition(":")
        pipe = jvdm.load(folder, system="vin", progress=False)
        if change:
            field, value = change.split("=")
            kind = type(getattr(pipe.system.model, field))
            model = pipe.system.model.clone(**{field: kind(value)})
            pipe = dataclasses.replace(pipe, system=dataclasses.replace(pipe.system, model=model))
        asked = {"num_frames": frames, "progress": False, "output_type": "np", **rules}
        made = pipe([""] * VIDEOS, **asked).astype(np.float32)
        print(f"{told:<34}{row_of(made, borders)}", flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "frames are more")
    if sys.argv[1:] == ["operations"]:
        operations()
        sys.exit()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
