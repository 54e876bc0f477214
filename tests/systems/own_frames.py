"""How far what is made behind own frames is from the world: tables of self_forcing and others.

python -m tests.systems.own_frames CLIPS[xFRAMES] WEIGHTS[:SYSTEM[:true]]...

WEIGHTS are a folder or embedded weights, sampled by their own rules or as SYSTEM; with `true`, each
latent frame behind true ones. The clips are of the captions of held-out films. A column is the
energy distance, without bias, between what is made and the films: of each latent frame, and of its
change from the one before, which is 0 where both have one law; of longer films than the 9 pixel
frames of nano the means of thirds, and of both halves of changes. `world` is one half of the films
against the other.
"""

import dataclasses
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jvdm
from jvdm.configs import nano
from jvdm.training.rollouts import Rollouts
from jvdm.world.clips import clips
from jvdm.world.vocabulary import WORDS

AT_ONCE = 64


def films(pipe: Any, count: int, frames: int) -> tuple[list[str], np.ndarray]:
    """Returns captions and standardised latents of held-out films."""
    world = dataclasses.replace(nano.WORLD, num_frames=frames)
    render = jax.jit(lambda first: clips(world, "test", first + jnp.arange(AT_ONCE)))
    encode = jax.jit(lambda video: pipe.system.encode(pipe.params, video))
    found, said = [], []
    for first in range(0, count, AT_ONCE):
        clip = render(first)
        found.append(np.asarray(encode(clip.video)))
        rows = np.asarray(clip.tokens)
        said += [" ".join(WORDS[token] for token in row if token > 0) for row in rows]
    return said, np.concatenate(found)


def energy(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the energy distance of two samples; without bias, 0 for equal laws."""
    one, other = (x.reshape(len(x), -1).astype(np.float64) for x in (one, other))

    def far(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        square = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
        return np.sqrt(np.maximum(square, 0))

    def within(a: np.ndarray) -> float:
        pairs = far(a, a)
        return float((pairs.sum() - np.trace(pairs)) / (len(a) * (len(a) - 1)))

    return float(2 * far(one, other).mean()) - within(one) - within(other)


def made(pipe: Any, said: list[str], frames: int, past: np.ndarray | None) -> np.ndarray:
    """Returns the latents of clips that a system makes, behind its own frames or given ones."""
    if past is None:
        rules: dict[str, Any] = {"seed": 7, "progress": False, "output_type": "latent"}
        rules["num_frames"] = frames
        parts = [said[first : first + AT_ONCE] for first in range(0, len(said), AT_ONCE)]
        return np.concatenate([np.asarray(pipe(part, **rules)) for part in parts])
    rollouts, system = Rollouts(pipe.system), pipe.system

    @jax.jit
    def roll(ids: Any, past: Any, key: Any) -> Any:
        noise = jax.random.normal(key, past.shape)
        told, last = system.told(pipe.params, ids), jnp.int32(rollouts.steps - 1)
        return rollouts.make(pipe.params, told, noise, last, key, past).clean

    found = []
    for first in range(0, len(said), AT_ONCE):
        ids = jax.tree.map(jnp.asarray, system.text.read(tuple(said[first : first + AT_ONCE]))[0])
        found.append(roll(ids, past[first : first + AT_ONCE], jax.random.key(first)))
    return np.concatenate(found)


def row_of(found: np.ndarray, true: np.ndarray) -> str:
    """Returns the distances of frames, and of changes, in thirds and halves of films."""
    frames = [energy(found[:, f], true[:, f]) for f in range(true.shape[1])]
    one, other = np.diff(found, axis=1), np.diff(true, axis=1)
    changes = [energy(one[:, f], other[:, f]) for f in range(one.shape[1])]
    size = float(np.abs(one).mean() / np.abs(other).mean())
    parts = np.array_split(frames, 3), np.array_split(changes, 2)
    cells = [" ".join(f"{np.mean(x):6.3f}" for x in part) for part in parts]
    return f"frames {cells[0]}  changes {cells[1]}  their size {size:.2f}"


def main(count: int, frames: int, folders: list[str]) -> None:
    """Prints a row for each weights folder."""
    said, true = films(jvdm.load("nano", progress=False), count, frames)
    print(f"{'world':<44}{row_of(true[::2], true[1::2])}", flush=True)
    for named in folders:
        folder, system, past = (named.split(":") + ["", ""])[:3]
        pipe = jvdm.load(folder, system=system or None, progress=False)
        began = time.perf_counter()
        found = made(pipe, said, frames, true if past else None)
        seconds = time.perf_counter() - began
        print(f"{named:<44}{row_of(found, true)}  {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {sys.argv[1]} clips")
    count_, _, frames_ = sys.argv[1].partition("x")
    main(int(count_), int(frames_ or nano.WORLD.num_frames), sys.argv[2:])
