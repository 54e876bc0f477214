"""Whether a plan keeps films where they belong: the table of the system arlon.

python -m tests.systems.planned_drift STEPS WEIGHTS[:first=NUMBER] [ROW...]

WEIGHTS are those of `configs/arlon.py`; NUMBER is that of the first of other films. Films of the
world with a camera that rests are gone on with from their first latent frame, as `frame_drift`
says, which also says what `error` and `motion` are. `away` is how far the colours of the prompt are
from where the true film has them, in widths of the picture. Rows: `foretold` is the system,
`without` the same network without a plan, `true` codes are those of the true film, `wrong` and
`true wrong` have one code in ten replaced by any; all rows if none is named. `foretold:0.5` has
another temperature.
"""

import dataclasses
import sys
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jvdm
from jvdm.arrays import Array
from jvdm.models.planned import Planned, PlannedDiT
from jvdm.pipeline.request import Given
from jvdm.world.actions import places
from jvdm.world.scene import COLORS
from tests.systems.frame_drift import FIRST, MADE, WINDOWS, films, row_of

ROWS = ("without", "foretold", "wrong", "true wrong", "true")
WRONG = 0.1


class Held:
    """Codes of films, compared by identity."""

    def __init__(self, codes: np.ndarray) -> None:
        self.codes = codes


class ToldDiT(PlannedDiT):
    """Plans by given codes, and by wrong ones."""

    told: Held | None = None
    wrong: float = 0.0

    def drawn(self, frame: Array, codes: Array, square: Array, logits: Array) -> Array:
        """Returns what is drawn, or now and then any code."""
        right = super().drawn(frame, codes, square, logits)
        bits = jnp.abs(frame[0, 0, 0, 0, 0] * 1e6).astype(jnp.int32)  # another in every frame
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), bits), square)
        keys = jax.random.split(key)
        other = jax.random.randint(keys[0], right.shape, 0, self.codes)
        return jnp.where(jax.random.bernoulli(keys[1], self.wrong, right.shape), other, right)

    def _foretold(self, x: Array, call: Any, text: Any, carry: Planned) -> Planned:
        if self.told is None:
            return super()._foretold(x, call, text, carry)
        frames = call.row.frame + jnp.arange(x.shape[1])
        codes = jnp.asarray(self.told.codes)[:, frames]
        codes = carry.codes.at[:, frames % carry.codes.shape[1]].set(codes)
        return dataclasses.replace(carry, codes=codes)


def away(made: np.ndarray, true: np.ndarray, sentences: list[str]) -> str:
    """Returns how far colours are from where they should be, in the windows of frames."""
    where, found = jax.jit(jax.vmap(places, (0, None))), []
    for index, color in enumerate(COLORS):
        named = [film for film, said in enumerate(sentences) if color in said.split()]
        if named:
            spots = [where(jnp.asarray(video[named]) / 255, index) for video in (made, true)]
            found.append(np.linalg.norm(np.asarray(spots[0] - spots[1]), axis=-1))
    found = np.concatenate(found)
    return " ".join(f"away {name} {np.nanmean(found[:, at]):.3f}" for name, at in WINDOWS.items())


def network_of(row: str, model: PlannedDiT, codes: np.ndarray) -> PlannedDiT:
    """Returns the network of a row; `codes` are those of the true films."""
    if row == "without":
        return model.clone(follows=False)
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    fields = {name: value for name, value in fields.items() if name not in ("parent", "name")}
    random = np.random.default_rng(0)
    if row == "true wrong":
        wrong = random.random(codes.shape) < WRONG
        codes = np.where(wrong, random.integers(0, model.codes, codes.shape), codes)
    if row.startswith("foretold:"):
        fields["temperature"] = float(row.split(":")[1])
    told = Held(codes) if row.startswith("true") else None
    return ToldDiT(**fields, told=told, wrong=WRONG if row == "wrong" else 0.0)


def main(steps: int, named: str, rows: list[str]) -> None:
    """Prints the table."""
    folder, _, first = named.partition(":first=")
    sentences, video = films(int(first or FIRST))
    still = (np.ptp(video.astype(np.int32), axis=1) <= 1).all(-1)
    asked: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": 1.0, "seed": 100}
    asked |= {"num_frames": MADE + 1, "progress": False, "output_type": "latent"}
    pipe = jvdm.load(folder, system="arlon", progress=False)
    model: Any = pipe.system.model
    latents = np.asarray(pipe.encode(video))
    arrays = {"params": pipe.params["model"]}
    coded = jax.jit(lambda x: model.apply(arrays, x, method="coded"))(latents)
    true, rough = (pipe.decode(x).astype(np.float32) for x in (latents, np.asarray(coded.rebuilt)))
    print(f"codes in use {float(coded.used):.0f}; what true codes say of the films:", flush=True)
    print("   ", row_of(rough, true, still), away(rough, true, sentences), flush=True)
    known = Given(jnp.asarray(latents[:, :1]), (0,))
    for row in rows or ROWS:
        network = network_of(row, model, np.asarray(coded.codes))
        told = dataclasses.replace(pipe, system=dataclasses.replace(pipe.system, model=network))
        made = told.decode(np.asarray(told(sentences, given=(known,), **asked))).astype(np.float32)
        cells = [f"{key} {x:.2f}" for key, x in row_of(made, true, still).items()]
        print(f"{row:<12}", *cells, away(made, true, sentences), flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "65 frames are more")
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
