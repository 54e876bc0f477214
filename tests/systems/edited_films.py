"""Films of the world that SDEdit is told another caption of: a table by strength.

python -m tests.systems.edited_films [CLIPS] [STRENGTH ...]

Every held-out clip of one object is edited with the caption of the next one, by `tiny_t2v`:

kept     PSNR in dB to the given film
edited   share of clips in which a reader sees colour, shape and size of the new caption
as given the same of the old one
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import jvdm
from jvdm.evaluation.held_out import SETS, Prompts, draw
from jvdm.evaluation.judge import Judge, make_judge
from jvdm.fidelity import psnr
from jvdm.pipeline import Request

STRENGTHS = (0.3, 0.6, 0.9)


def edited(films: np.ndarray, texts: tuple[str, ...], strength: float) -> np.ndarray:
    """Returns every film after a run of this strength that is told its text, uint8."""
    pipe = jvdm.load(system="sdedit", sampling={"matrix.strength": strength}, progress=False)
    made = [
        pipe(text, video=film, seed=seed, progress=False)
        for seed, (film, text) in enumerate(zip(films, texts, strict=True))
    ]
    return np.stack([video.frames for video in made])


def seen(judge: Judge, frames: np.ndarray, told: Prompts) -> float:
    """Returns the share of clips in which a reader sees what their captions say."""
    measures, _ = judge.measure(jnp.asarray(frames), told)
    return float(measures["reader all"].value.mean())


def table(count: int, strengths: tuple[float, ...]) -> None:
    """Prints a row for each strength."""
    judge = make_judge(jvdm.load(progress=False), None, Request())
    given = draw(SETS["A"], judge.world, count)
    told: Prompts = jax.tree.map(lambda leaf: np.roll(leaf, -1, axis=0), given)
    films = np.asarray(judge.film(given))
    print("strength    kept  edited  as given")
    for strength in strengths:
        frames = edited(films, told.texts, strength)
        kept = psnr(jnp.asarray(frames) / 255.0, jnp.asarray(films) / 255.0).mean()
        new, old = seen(judge, frames, told), seen(judge, frames, given)
        print(f"{strength:8.2f}  {float(kept):6.1f}  {new:6.2f}  {old:8.2f}", flush=True)


if __name__ == "__main__":
    clips, *numbers = [float(word) for word in sys.argv[1:]] or [8.0]
    table(int(clips), tuple(numbers) or STRENGTHS)
