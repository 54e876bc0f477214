"""How often a played stream does what it is told, and how fast: the table of the system nfd.

.venv/bin/python -m tests.systems.played_motion WEIGHTS [SEEDS [KEPT]]

WEIGHTS are those of `configs/nfd.py`; KEPT are the latent frames that its cache holds. Each film
begins without an action for a chunk, and then what is told is held for two; before a stop the ball
is pushed for one. Read are how far the ball goes to the right and down the picture meanwhile, in
widths of it, and by how many radians the camera turns: at which angle of a bank the ground looks
most as it does. True films are those of the world, with the same actions. A film does what was said
where its own measure goes the right way by more than `LEAST`, and where nothing is to be seen if
none of the three does.
"""

import dataclasses
import functools
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jvdm
from jvdm.pipeline import Request
from jvdm.pipeline.session import Act, begin_session
from jvdm.world import actions as a
from jvdm.world.palette import classify
from jvdm.world.physics import simulate
from jvdm.world.render import Shot, orbit_camera, render
from jvdm.world.scene import COLORS, World, sample_scene, scene_key

AXES = ("right", "down", "turned")
LEAST = (0.03, 0.015, 0.2)  # widths, widths, radians
WAYS = {
    "push left": (0, -1),
    "push right": (0, 1),
    "push closer": (1, 1),
    "push away": (1, -1),
    "turn left": (2, -1),
    "turn right": (2, 1),
    "stop": None,
    "none": None,
}
"""Which measure says that an action was done, and its sign."""
BEFORE = {"stop": ("push right",)}  # what is done in the chunks before, for one each
HELD = 2  # chunks
ANGLES = np.linspace(-0.9, 0.9, 73)  # radians


def script(name: str) -> tuple[str, ...]:
    """Returns what is done in each chunk after the first."""
    return (*BEFORE.get(name, ()), *(name,) * HELD)


@functools.cache
def grounds(world: World) -> np.ndarray:
    """Returns the empty world from all `ANGLES`, `[A, H, W, 3]`."""
    scene = sample_scene(scene_key("val", 0), num_objects=1)
    scene = scene._replace(active=jnp.zeros_like(scene.active))
    course = simulate(scene, world, len(ANGLES))
    shot = Shot(scene, course, orbit_camera(jnp.asarray(ANGLES, jnp.float32)))
    return np.asarray(jax.jit(lambda: render(shot, world))())


def angle(frame: np.ndarray, world: World) -> float:
    """Returns the camera's angle in a frame 0..1, by the ground in its lower three quarters."""
    there = np.array(classify(jnp.asarray(frame, jnp.float32)) < 0)
    there[: len(there) // 4] = False
    away = np.abs(grounds(world) - frame).mean(-1)
    return float(ANGLES[np.argmin((away * there).sum((1, 2)))])


def went(video: np.ndarray, color: int, world: World) -> np.ndarray:
    """Returns what is seen to happen while the last action is held, by `AXES`."""
    first, last = video[-1 - 4 * HELD], video[-1]
    place = np.asarray(a.places(jnp.asarray(np.stack([first, last]), jnp.float32), color))
    return np.append(place[1] - place[0], angle(last, world) - angle(first, world))


def made(pipe: Any, name: str, seed: int, world: World) -> np.ndarray:
    """Returns what is seen of an action in a film."""
    color = seed % len(COLORS)
    prompt = f"a large {COLORS[color]} ball rests"
    session = begin_session(pipe, Request(prompt=prompt, seed=seed))
    frames, todo = [], iter(script(name))
    while session.frames < 5 + 4 * len(script(name)):
        if session.frames >= 5:
            session = session.after(Act(next(todo)))
        session, more = session.step()
        frames.append(more)
    return went(np.concatenate(frames) / 255.0, color, world)


def true_films(name: str, seeds: int, world: World) -> list[np.ndarray]:
    """Returns the same of the world."""
    held = [a.index_of(each) for each in ("none", *script(name)) for _ in range(4)]
    actions = jnp.broadcast_to(jnp.asarray([*held, 0], jnp.int32), (seeds, len(held) + 1))
    clip = jax.jit(lambda: a.play(world, "val", jnp.arange(seeds), actions))()
    return [
        went(np.asarray(clip.video[i]), int(clip.facts.color[i, 0]), world) for i in range(seeds)
    ]


def share(name: str, films: list[np.ndarray]) -> str:
    """Returns how many films do what was said, and what happens on average."""
    found, way = np.stack(films), WAYS[name]
    if way is None:
        right = (np.abs(found) < LEAST).all(1)
        return f"{right.mean():.2f}"
    axis, sign = way
    right = sign * found[:, axis] > LEAST[axis]
    return f"{right.mean():.2f} ({np.nanmean(found[:, axis]):+.3f})"


def speeds(pipe: Any) -> str:
    """Returns the frames per second of a stream."""
    session = begin_session(pipe, Request(prompt="a large red ball rests", seed=0))
    session, _ = session.step()
    began = time.perf_counter()
    for _ in range(100):
        session, _ = session.step()
    return f"{400 / (time.perf_counter() - began):.0f} frames/s"


def main(weights: str, seeds: int = 28, kept: int | None = None) -> None:
    """Prints the table."""
    pipe = jvdm.load(weights, system="nfd", progress=False)
    if kept is not None:
        sampling = pipe.system.sampling
        matrix = dataclasses.replace(sampling.matrix, lookback=kept)
        policy = dataclasses.replace(sampling.policy, frames=kept)
        sampling = dataclasses.replace(sampling, matrix=matrix, policy=policy)
        pipe = dataclasses.replace(pipe, system=dataclasses.replace(pipe.system, sampling=sampling))
    shown = pipe.manifest.defaults
    world = World(shown.height, shown.width, 9, shown.fps, substeps=12)
    print(f"{'':14}{'played':>16}{'world':>16}")
    for name in WAYS:
        films = [made(pipe, name, seed, world) for seed in range(seeds)]
        print(f"{name:14}{share(name, films):>16}{share(name, true_films(name, seeds, world)):>16}")
    print(speeds(pipe), "of one stream on", jax.devices()[0].device_kind)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
