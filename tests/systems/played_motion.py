"""How often a played stream does what it is told, and how fast: the table of the system nfd.

.venv/bin/python -m tests.systems.played_motion WEIGHTS [SEEDS]

WEIGHTS are those of `configs/nfd.py`. Each film begins without an action for a chunk, which is then
held for two; how far the ball goes to the right meanwhile, in widths of the picture, says what was
done. True films are those of the world, with the same actions. A film of the right direction counts
where the ball goes by more than `LEAST`, and one at rest where it does not.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import jvdm
from jvdm.pipeline import Request
from jvdm.pipeline.session import Act, begin_session
from jvdm.world import actions as a
from jvdm.world.scene import COLORS, World

WAYS = {"push left": -1, "push right": 1, "stop": 0, "none": 0}
LEAST = 0.03
HELD = 2  # chunks


def went(video, color: int) -> float:
    """Returns how far a colour goes to the right from frame 4 on, nan where it is not seen."""
    seen = np.asarray(a.places(jnp.asarray(video, jnp.float32), jnp.int32(color)))
    return float(seen[-1, 0] - seen[4, 0])


def made(pipe, name: str, seed: int) -> float:
    """Returns what is seen of an action in a film."""
    color = seed % len(COLORS)
    prompt = f"a large {COLORS[color]} ball rests"
    session = begin_session(pipe, Request(prompt=prompt, seed=seed))
    frames = []
    while session.frames < 5 + 4 * HELD:
        if session.frames == 5:
            session = session.after(Act(name))
        session, more = session.step()
        frames.append(more)
    return went(np.concatenate(frames) / 255.0, color)


def true_films(world: World, name: str, seeds: int) -> list[float]:
    """Returns the same of the world."""
    held = jnp.full((seeds, 5 + 4 * HELD), a.index_of(name)).at[:, :4].set(0)
    clip = jax.jit(lambda: a.play(world, "val", jnp.arange(seeds), held))()
    return [went(clip.video[i], int(clip.facts.color[i, 0])) for i in range(seeds)]


def share(name: str, moves: list[float]) -> str:
    """Returns how many films do what was said, and how far the ball goes on average."""
    way, found = WAYS[name], np.asarray(moves)
    right = np.abs(found) < LEAST if way == 0 else way * found > LEAST
    return f"{right.mean():.2f} ({np.nanmean(found):+.3f})"


def speeds(pipe) -> str:
    """Returns the frames per second of a stream."""
    session = begin_session(pipe, Request(prompt="a large red ball rests", seed=0))
    session, _ = session.step()
    began = time.perf_counter()
    for _ in range(100):
        session, _ = session.step()
    return f"{400 / (time.perf_counter() - began):.0f} frames/s"


def main(weights: str, seeds: int) -> None:
    """Prints the table."""
    pipe = jvdm.load(weights, system="nfd", progress=False)
    shown = pipe.manifest.defaults
    world = World(shown.height, shown.width, 9, shown.fps, substeps=12)
    print(f"{'':14}{'played':>16}{'world':>16}")
    for name in WAYS:
        films = [made(pipe, name, seed) for seed in range(seeds)]
        print(f"{name:14}{share(name, films):>16}{share(name, true_films(world, name, seeds)):>16}")
    print(speeds(pipe), "of one stream on", jax.devices()[0].device_kind)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 28)
