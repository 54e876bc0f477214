"""Films that are changed as they come: a cache for each level beside one of finished frames.

python -m tests.systems.level_banks [FILMS] [WEIGHTS] [BELOW]

A held-out film of one object, shown to and fro, is followed by another one, as a cut, and edited
in a wave of lag 1 with the caption of the second, at the levels of `streamdiffusion_v2`:

bank        a cache for each level, six frames, three of them a sink that is refreshed
fixed sink  the same, without refreshing
refreshed   the same, refreshed below BELOW instead of .2
no motion   a first level that does not follow the motion
clean       one cache of six frames, a sink of three, written by a row more for each frame
apart       PSNR in dB to the synchronous run with frame-causal attention, which has no cache
kept        PSNR in dB to the given film
after       the same, of the first eight frames after the cut
calls       of the network, for each latent frame
frames      that it is shown, for each
fps         frames a second after compilation, with decoding
"""

import dataclasses
import sys
import time
from typing import Any

import jax.numpy as jnp
import numpy as np

import jvdm
from jvdm.attention import CachedCausal, FrameCausal
from jvdm.evaluation.held_out import SETS, draw
from jvdm.evaluation.judge import make_judge
from jvdm.fidelity import psnr
from jvdm.pipeline import Pipeline, Request
from jvdm.samplers import CachedMatrix, ExplicitLevels, LagMatrix, SynchronousMatrix, cost

AFTER, HALF = 8, 40  # frames


def ways(pipe: Pipeline, below: float) -> dict[str, Pipeline]:
    """Returns the system, and others that differ from it in what frames read."""
    policy, levels = pipe.system.sampling.policy, pipe.system.sampling.levels
    clean = CachedCausal(policy.frames, sink=policy.sink, rotary="read")
    rules: dict[str, dict[str, Any]] = {
        "together": {"policy": FrameCausal(), "matrix": SynchronousMatrix()},
        "bank": {},
        "fixed sink": {"policy": dataclasses.replace(policy, refresh=-1.0)},
        "refreshed": {"policy": dataclasses.replace(policy, refresh=below)},
        "clean": {"policy": clean, "matrix": CachedMatrix(LagMatrix(1), lookback=0)},
    }
    rules["no motion"] = {"levels": ExplicitLevels(levels.levels)}

    def changed(parts: dict[str, Any]) -> Pipeline:
        sampling = dataclasses.replace(pipe.system.sampling, **parts)
        return dataclasses.replace(pipe, system=dataclasses.replace(pipe.system, sampling=sampling))

    return {name: changed(parts) for name, parts in rules.items()}


def given_films(films: np.ndarray, vae: Any) -> tuple[np.ndarray, int]:
    """Returns pairs of films, each shown to and fro, and where the cut between them is."""
    times = -(-HALF // films.shape[1])
    swung = np.concatenate([films[:, :: 1 - 2 * (n % 2)] for n in range(times)], 1)
    both = np.concatenate([swung[0::2], swung[1::2]], 1)
    stride = vae.strides[0]
    frames = 1 + (both.shape[1] - 1) // stride * stride
    return both[:, -frames:], frames - swung.shape[1]


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the mean PSNR of two uint8 films."""
    shown = (jnp.asarray(film, jnp.float32)[None] / 255.0 for film in (one, other))
    return float(psnr(*shown).mean())


def table(count: int, weights: str | None, below: float) -> None:
    """Prints a row for each way."""
    base = jvdm.load(weights, system="streamdiffusion_v2", progress=False)
    judge = make_judge(jvdm.load(weights, progress=False), None, Request())
    given = draw(SETS["A"], judge.world, 2 * count)
    films, cut = given_films(np.asarray(judge.film(given)), base.system.vae)
    asked: Any = {"num_frames": films.shape[1], "progress": False}
    print("way          apart   kept  after  calls frames    fps")
    reference: list[np.ndarray] = []
    for name, pipe in ways(base, below).items():
        made, took = [], []
        for seed, film in enumerate(films):
            began = time.perf_counter()
            video = pipe(given.texts[2 * seed + 1], video=film, seed=seed, **asked)
            took.append(time.perf_counter() - began)
            made.append(np.asarray(video.frames))
        reference = reference or made
        matrix = pipe.prepare(
            Request(prompt="", seed=0, video=films[0], num_frames=films.shape[1])
        ).matrix
        after = slice(cut, cut + AFTER)
        pairs = list(zip(made, reference, films, strict=True))
        columns = [
            np.mean([likeness(one, other) for one, other, _ in pairs]),
            np.mean([likeness(one, film) for one, _, film in pairs]),
            np.mean([likeness(one[after], film[after]) for one, _, film in pairs]),
            cost(matrix).calls / matrix.latent_frames,
            cost(matrix).frame_evaluations / matrix.latent_frames,
            films.shape[1] / min(took),
        ]
        print(f"{name:11s}", *(f"{value:6.2f}" for value in columns), flush=True)


if __name__ == "__main__":
    told = dict(enumerate(sys.argv[1:]))
    table(int(told.get(0, 2)), told.get(1), float(told.get(2, 0.85)))
