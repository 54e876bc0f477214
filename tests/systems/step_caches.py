"""Step caches beside runs of fewer steps of equal cost, and what MagCache is calibrated by.

python -m tests.systems.step_caches calibrate [WEIGHTS] [STEPS]
python -m tests.systems.step_caches measure [WEIGHTS] [STEPS]

`calibrate` prints the mean size of the change that the layers make, level by level, over prompts
and branches, and how it moves from row to row beside what TeaCache looks at. `measure` prints, for
every cache, the rows that computed and the PSNR of the clips to those of the same steps without a
cache (`same`) and to those of four times the steps (`fine`), then likewise of runs of as many steps
as rows computed: a cache that is no nearer to `fine` than these is of no use.
"""

import dataclasses
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np

import jvdm
from configs.systems import magcache
from jvdm.attention.patterns import fingerprint
from jvdm.fidelity import psnr
from jvdm.models.regions import Regions
from jvdm.models.step_cache import FirstBlockCache, MagCache, StepCache, TeaCache
from jvdm.pipeline import Request

PROMPTS = (
    "a large red ball rolls to the left",
    "a small blue box slides to the right",
    "a large green can rests and a small yellow ball rolls to the right",
    "a small purple box falls",
)
CACHES: dict[str, StepCache] = {
    "every 2nd": StepCache(1),
    "every 3rd": StepCache(2),
    "every 2nd, line": StepCache(1, order=1),
    "every 3rd, line": StepCache(2, order=1),
    "tea time .1": TeaCache(threshold=0.1, signal="time"),
    "tea time .2": TeaCache(threshold=0.2, signal="time"),
    "tea tokens .3": TeaCache(threshold=0.3),
    "tea tokens .6": TeaCache(threshold=0.6),
    "first block .1": FirstBlockCache(threshold=0.1),
    "first block .2": FirstBlockCache(threshold=0.2),
    "mag .06": dataclasses.replace(magcache.TINY_T2V, threshold=0.06),
    "mag .12": dataclasses.replace(magcache.TINY_T2V, threshold=0.12),
    "regions .5": Regions(longest=100),
    "regions .5, in turn": Regions(longest=100, impatience=100.0),
    "regions .5, .1": Regions(longest=100, impatience=0.1),
    "regions .25": Regions(longest=100, share=0.25),
    "mag .24": dataclasses.replace(magcache.TINY_T2V, threshold=0.24),
}


def with_cache(pipe: jvdm.Pipeline, cache: StepCache | None) -> jvdm.Pipeline:
    """Returns the pipeline with a step cache."""
    sampling = dataclasses.replace(pipe.system.sampling, cache=cache)
    return dataclasses.replace(pipe, system=dataclasses.replace(pipe.system, sampling=sampling))


def made(pipe: jvdm.Pipeline, steps: int) -> tuple[np.ndarray, dict[str, float]]:
    """Returns the clips of all prompts, 0..1, and what the cache did.

    Regions make them one by one, for they have one focus for all clips of a call.
    """
    seeds, videos = tuple(range(len(PROMPTS))), []
    size = 1 if isinstance(pipe.system.sampling.cache, Regions) else len(PROMPTS)
    for first in range(0, len(PROMPTS), size):
        some: Any = slice(first, first + size)
        together: Any = pipe(list(PROMPTS[some]), seed=seeds[some], num_inference_steps=steps)
        videos += together
    frames = np.stack([video.frames for video in videos])
    return frames.astype(np.float32) / 255, videos[0].record["cache"]


def calibrate(weights: str = "tiny_t2v", steps: int = 32) -> None:
    """Prints levels, logarithms of sizes, and relative changes from row to row."""
    pipe = with_cache(jvdm.load(weights), TeaCache(threshold=0.0, above=2.0))
    seeds = tuple(range(len(PROMPTS)))
    run = pipe.start(pipe.prepare(Request(prompt=PROMPTS, seed=seeds, num_inference_steps=steps)))
    rows, before = [], None
    for _ in range(run.job.matrix.num_rows):
        run = pipe.advance(run, 1)
        kept = run.state.carry.reused
        now = [np.asarray(x, np.float32) for x in (kept.change[0], kept.signal)]
        moved = [np.nan, np.nan]
        if before is not None:
            moved = [
                np.abs(x - y).mean() / np.abs(y).mean() for x, y in zip(now, before, strict=True)
            ]
        rows.append((float(kept.at[0, 0, 0]), float(np.log(np.abs(now[0]).mean())), *moved))
        before = now
    print("level   log size   change moved   tokens moved")
    for row in rows:
        print("{:.4f}  {:8.4f}  {:8.4f}  {:8.4f}".format(*row))
    levels, sizes = zip(*(row[:2] for row in reversed(rows)), strict=True)
    print(f"levels={tuple(round(x, 4) for x in levels)}")
    print(f"sizes={tuple(round(x, 4) for x in sizes)}")
    print(f"weights={fingerprint(pipe.identity)!r}")


def measure(weights: str = "tiny_t2v", steps: int = 16) -> None:
    """Prints a row for every cache, and for the runs of equal cost."""
    pipe = jvdm.load(weights)
    same, fine = made(pipe, steps)[0], made(pipe, 4 * steps)[0]

    def shown(name: str, calls: float, frames: np.ndarray) -> None:
        near = [float(psnr(jnp.asarray(frames), jnp.asarray(x)).mean()) for x in (same, fine)]
        print(f"{name:18} {calls:5.4g}  {near[0]:6.2f}  {near[1]:6.2f}", flush=True)

    print("cache               rows    same    fine")
    shown("none", steps, same)
    counts = set()
    for name, cache in CACHES.items():
        if isinstance(cache, MagCache) and weights != "tiny_t2v":
            continue
        frames, did = made(with_cache(pipe, cache), steps)
        shown(name, did["computed"], frames)
        counts.add(round(did["computed"]))
    for count in sorted(counts - {steps}, reverse=True):
        shown("fewer steps", count, made(pipe, count)[0])


if __name__ == "__main__":
    task, *given = sys.argv[1:]
    named = {"weights": str, "steps": int}
    read: dict[str, Any] = {key: of(x) for (key, of), x in zip(named.items(), given, strict=False)}
    {"calibrate": calibrate, "measure": measure}[task](**read)
