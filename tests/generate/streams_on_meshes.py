"""Runs in a process of four CPU devices: streams over meshes, and those of one device.

`python -m tests.generate.streams_on_meshes FOLDER` prints a line of JSON for a clip in sections,
and for every stream: how far the frames (in bytes) and the window (in numbers) are from those of
one device, the operations of a device beside those of one alone, and, of a session that is saved in
the middle, how far the frames are that follow on one device and on all.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax

jax.config.update("jax_num_cpu_devices", 4)

import numpy as np  # noqa: E402

import jvdm  # noqa: E402
from jvdm.errors import ConfigError  # noqa: E402
from jvdm.parallel import mesh_of  # noqa: E402
from jvdm.pipeline import Request, programs, streaming  # noqa: E402
from jvdm.pipeline.session import Prompt, Session, begin_session, load_session  # noqa: E402

PROMPT, OTHER = "a large red ball rolls to the left", "a small blue box rests"
CACHED = {
    "matrix": "cached",
    "policy": "cached_causal",
    "policy.frames": 9,
    "matrix.lookback": 8,
    "matrix.rewrite": 2,
}
ROWS: tuple[Any, ...] = (("wave", {}, "sequence=2"), ("cached", CACHED, "sequence=2,tensor=2"))


def made(session: Session, count: int) -> tuple[Session, np.ndarray]:
    """Returns the session after so many chunks, the second told otherwise, and their frames."""
    frames = []
    for chunk in range(count):
        session, part = session.step(*([Prompt(OTHER)] if chunk == 1 else []))
        frames.append(part.astype(int))
    return session, np.concatenate(frames)


def operations(session: Session) -> float:
    """Returns what a device computes for a chunk."""
    pipe, job = session.pipe, session.job
    told = (session.run.told[-1].conditions, job.rows, session.run.state)
    program = programs.stream_chunk.lower(*streaming.network(pipe, job), *told, mesh=pipe.mesh)
    return program.compile().cost_analysis()["flops"]


def compare(name: str, folder: str, rules: dict[str, Any], description: str) -> dict[str, Any]:
    """Returns how far a mesh is off."""
    devices = int(np.prod([int(part.split("=")[1]) for part in description.split(",")]))
    mesh = mesh_of(description, jax.devices()[:devices])
    found = {}
    for key in (None, mesh):
        pipe = jvdm.load(folder, sampling=rules, dtype="float32", mesh=key, progress=False)
        session, frames = made(begin_session(pipe, Request(prompt=PROMPT, seed=0)), 3)
        found[key] = (pipe, session, frames, np.asarray(session.run.state.run.x))
    (alone, first, frames, window), (spread, second, others, near) = found.values()
    row = {"what": name, "mesh": description, "frames": int(np.abs(frames - others).max())}
    row["window"] = float(np.abs(window - near).max())
    row["operations"] = operations(second) / operations(first)
    path = Path(tempfile.mkdtemp()) / "session.safetensors"
    following = made(first, 3)[1]
    for saved, pipe, where in ((first, spread, "to all"), (second, alone, "to one")):
        saved.save(path)
        again = made(load_session(pipe, path), 3)[1]
        row[where] = int(np.abs(again - following).max())
    programs_before = programs.stream_chunk._cache_size()
    made(load_session(spread, path), 1)
    row["compiled again"] = programs.stream_chunk._cache_size() - programs_before
    return row


def sections(folder: str, description: str) -> dict[str, Any]:
    """Returns how far a clip in two sections is off, in numbers of its latents."""
    asked = {"prompt_at": {"0.4s": OTHER}, "seed": 0, "output_type": "latent", "progress": False}
    made = []
    for mesh in (None, mesh_of(description)):
        pipe = jvdm.load(folder, dtype="float32", mesh=mesh, progress=False)
        made.append(np.asarray(pipe(PROMPT, **asked)))
    return {"what": "sections", "latents": float(np.abs(made[0] - made[1]).max())}


if __name__ == "__main__":
    print(json.dumps(sections(sys.argv[1], "ring=2,sequence=2")), flush=True)
    for name, rules, description in ROWS:
        print(json.dumps(compare(name, sys.argv[1], rules, description)), flush=True)
    pipe = jvdm.load(sys.argv[1], mesh=mesh_of("data=4"), progress=False)
    try:
        begin_session(pipe, Request(prompt=PROMPT))
    except ConfigError as error:
        print(json.dumps({"refused": str(error)}))
