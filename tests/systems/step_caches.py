"""Step caches beside runs of fewer steps of equal cost.

python -m tests.systems.step_caches measure [WEIGHTS] [STEPS] [CACHES]

Prints, for every cache, or those whose names begin so, the rows that computed and the PSNR of the
clips to those of the same steps without a cache (`same`) and to those of four times the steps
(`fine`), then likewise of runs of as many steps as rows computed: a cache that is no nearer to
`fine` than these is of no use.
"""

import dataclasses
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np

import jvdm
from configs.systems import magcache
from jvdm.fidelity import psnr
from jvdm.models.regions import Regions
from jvdm.models.step_cache import FirstBlockCache, MagCache, StepCache, TeaCache
from jvdm.pattern_search import with_cache

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
    "mag .06": MagCache(threshold=0.06),
    "mag .12": MagCache(threshold=0.12),
    "mag .24": MagCache(threshold=0.24),
    "regions .5": Regions(longest=100),
    "regions .5, in turn": Regions(longest=100, impatience=100.0),
    "regions .5, .1": Regions(longest=100, impatience=0.1),
    "regions .25": Regions(longest=100, share=0.25),
}
"""Of those that are calibrated, the thresholds: the rest is of the weights."""


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


def measure(weights: str = "tiny_t2v", steps: int = 16, named: str = "") -> None:
    """Prints a row for every cache, and for the runs of equal cost."""
    pipe = jvdm.load(weights)
    mine = magcache.system(pipe.system).sampling.cache
    same, fine = made(pipe, steps)[0], made(pipe, 4 * steps)[0]

    def shown(name: str, calls: float, frames: np.ndarray) -> None:
        near = [float(psnr(jnp.asarray(frames), jnp.asarray(x)).mean()) for x in (same, fine)]
        print(f"{name:18} {calls:5.4g}  {near[0]:6.2f}  {near[1]:6.2f}", flush=True)

    print("cache               rows    same    fine")
    shown("none", steps, same)
    counts = set()
    for name, cache in CACHES.items():
        if not name.startswith(named):
            continue
        if isinstance(cache, MagCache):
            cache = dataclasses.replace(mine, threshold=cache.threshold)
        frames, did = made(with_cache(pipe, cache), steps)
        shown(name, did["computed"], frames)
        counts.add(round(did["computed"]))
    for count in sorted(counts - {steps}, reverse=True):
        shown("fewer steps", count, made(pipe, count)[0])


if __name__ == "__main__":
    _, *given = sys.argv[1:]
    kinds = {"weights": str, "steps": int, "named": str}
    measure(**{name: kind(x) for (name, kind), x in zip(kinds.items(), given, strict=False)})
