"""Streams of published sizes, chunk after chunk, for `jvdm bench streams`.

Weights are random, which changes no time. What runs are the programs of every stream
(`jvdm.pipeline.programs`), in the order of one that nobody steers: the next chunk is begun before
the frames of one are fetched, and takes the memory of its state.
"""

import dataclasses
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvdm import samplers
from jvdm.arrays import PyTree
from jvdm.attention import CachedCausal, Window
from jvdm.families import FAMILIES, autoencoder_of, network_of, random_parameters
from jvdm.models.conditions import Conditions, TextStates
from jvdm.pipeline import programs
from jvdm.pipeline.loading import chosen_dtype
from jvdm.recipes import load_experiment
from jvdm.samplers import (
    AutoregressiveMatrix,
    CachedMatrix,
    Call,
    LagMatrix,
    ShiftedLevels,
    StreamRows,
    Unguided,
)
from jvdm.system import OF_A_ROW, Sampling, System
from jvdm.vae.latent_space import LatentSpace


class Stream(NamedTuple):
    """A stream at the sizes of a published one.

    Attributes:
        sampling: Levels, matrix and policy.
        latents: Rows, columns and channels of a latent frame.
        prompt: States of a prompt, and their width; None of a network that reads none.
        model: Fields of the network in which it differs from the shipped one.
        family: Of `jvdm.families.FAMILIES`, whose networks these are instead; empty for none.
        images: Whether every latent frame is a picture, decoded by itself.
        aim: Frames a second that are wanted on an H200.
    """

    sampling: Sampling
    latents: tuple[int, int, int]
    prompt: tuple[int, int] | None
    model: Mapping[str, Any] = {}
    family: str = ""
    images: bool = False
    aim: float | None = None


def _few_steps(matrix: Any, policy: Any, steps: int) -> Sampling:
    """Returns how a distilled model makes a stream: few steps, no guidance."""
    return Sampling(ShiftedLevels(steps, 5.0), matrix, guidance=Unguided(), policy=policy)


def _cached(frames: int, block: int) -> Sampling:
    """Returns four steps of blocks, whose earlier frames are in a cache."""
    rows = CachedMatrix(AutoregressiveMatrix(block), lookback=frames)
    return _few_steps(rows, CachedCausal(frames=frames, block=block), 4)


STREAMS = {
    "streamdit-4b-512p": Stream(
        _few_steps(LagMatrix(1, 2), Window(density=0.25, shifted=True, recall_queries=0), 8),
        (64, 64, 8),
        (256, 4096),
        {"width": 3072, "depth": 26, "head_dim": 128, "rotary_axes": (44, 42, 42)},
        aim=20.0,
    ),
    "nfd-310m": Stream(
        _cached(32, 1),
        (28, 48, 16),
        None,
        {"width": 1024, "depth": 24, "ports": ("actions",), "actions": ("none",)},
        images=True,
        aim=60.0,
    ),
    "wan-1.3b-480p": Stream(
        _cached(18, 3), (60, 104, 16), (512, 4096), family="wan-1.3b-480p", aim=30.0
    ),
    "stream-tiny": Stream(_cached(4, 1), (4, 4, 16), (4, 8), {"width": 128, "depth": 2}),
}
"""StreamDiT 4B (arXiv:2507.03745): 64 frames at 512p in work, of which a call finishes 8, windows
of a quarter of them. Next-Frame Diffusion 310M (arXiv:2506.01380): 384 x 224, frame by frame after
32 cached ones. Wan 1.3B made causal (Self-Forcing, arXiv:2506.08009): chunks of three latent frames
after 18 cached ones. One for tests and CPUs. Sizes that the papers do not say are chosen so that
the parameters are as many."""

COMPARED = tuple(STREAMS)[:-1]
"""What is timed if no name is given."""


def rows(names: tuple[str, ...], chunks: int) -> Iterator[dict[str, Any]]:
    """Makes streams, one after the other.

    Args:
        names: Of `STREAMS`.
        chunks: How many chunks are timed, after the cache is full.

    Yields:
        `shape`, `parameters`; of a chunk its `calls` of the network and `frames`; `seconds`, the
        median time from frames of a chunk to those of the next, `slowest` (the 99th percentile),
        `fps`, and `denoise_seconds` of further chunks; how the time grows per chunk (`slope`,
        seconds, and `slope_error`, its standard deviation); `held` and `held_later`, bytes of the
        state after the first and last chunk; and `aim`, the frames a second that are wanted on an
        H200, if any.
    """
    for name in names:
        yield {"shape": name, **_timed(STREAMS[name], chunks), "aim": STREAMS[name].aim}


def told(row: Any | None = None) -> str:
    """Returns a line of the table, its head if there is no row."""
    if row is None:
        return (
            "shape             calls  frames  denoise ms  chunk ms   99 %  frames/s  wanted  "
            "growth us/chunk       held GiB"
        )
    aim = "     -" if row["aim"] is None else f"{row['aim']:6.0f}"
    grown = f"{1e6 * row['slope']:8.2f} +- {1e6 * row['slope_error']:<6.2f}"
    held = f"{row['held'] / 2**30:8.3f}{'' if row['held'] == row['held_later'] else ' grows'}"
    denoise, whole, slowest = (
        1e3 * row[name] for name in ("denoise_seconds", "seconds", "slowest")
    )
    line = f"{row['shape']:17} {row['calls']:5d} {row['frames']:7d} {denoise:11.2f} {whole:9.2f}"
    return f"{line} {slowest:6.1f} {row['fps']:9.1f}  {aim} {grown} {held}"


def system_of(stream: Stream) -> tuple[System, Any]:
    """Returns the system of a stream, and shapes of its parameters."""
    dtype, family = chosen_dtype(None), FAMILIES.get(stream.family)
    if family:
        model, vae = network_of(family), autoencoder_of(family)
    else:
        shipped, channels = load_experiment("tiny_t2v").objective.system, stream.latents[-1]
        given = {"latent_channels": channels, "unroll": 1, "dtype": dtype}
        model = shipped.model.clone(**given, **stream.model)
        vae = shipped.vae.clone(latent_channels=channels, dtype=dtype)
    system = System(None, model, vae, sampling=stream.sampling)
    _, height, width = vae.strides
    frame, patch = jnp.zeros((1, 1, 2 * height, 2 * width, 3)), model.patch
    latents = jnp.zeros((1, 1, patch, patch, stream.latents[-1]))

    def made() -> PyTree:
        given = (latents, Call.at(jnp.zeros((1, 1))), _told(stream), None)
        params = model.init(jax.random.key(0), *given)["params"]
        return {"model": params, "vae": vae.init(jax.random.key(0), frame)["params"]}

    return system, jax.eval_shape(made)


def _told(stream: Stream) -> Conditions:
    """Returns what the network is told: states of a prompt, or an action for every frame."""
    if stream.prompt is None:
        return Conditions(actions=jnp.zeros((1, 1), jnp.int32))
    states = jax.random.normal(jax.random.key(2), (1, *stream.prompt))
    return Conditions(TextStates(states, jnp.full(1, stream.prompt[0])))


def _timed(stream: Stream, chunks: int) -> dict[str, Any]:
    """Returns the numbers of a stream."""
    system, shapes = system_of(stream)
    rules: Any = stream.sampling
    told, stream_rows = _told(stream), samplers.stream_of(rules.matrix, rules.levels(), 0)
    params = {name: random_parameters(shapes[name], getattr(system, name)) for name in shapes}
    zeros, ones = (jnp.full(stream.latents[-1], value) for value in (0.0, 1.0))
    coder, network = system.only("vae"), system.only("model", *OF_A_ROW)
    spaces = {"vae": LatentSpace(params.pop("vae"), zeros, ones)}
    if stream.prompt is None:
        held = jnp.zeros((1, stream_rows.buffer), jnp.int32)
        told = dataclasses.replace(told, actions=held)
    shape = (1, stream_rows.buffer, *stream.latents)
    seed: Any = np.uint32(0)
    state = programs.begin_stream(network, params, told, stream_rows, None, seed, shape=shape)
    carry, first, coming, fetched, parts, frames = None, 0, [], [], [], 0
    warm = 2 + _fill(stream_rows, rules.policy)
    for number in range(warm + chunks + 1):
        state, latents = programs.stream_on(network, params, told, stream_rows, state)
        pictures, _, carry = programs.decode_piece(
            coder, spaces, latents, None if stream.images else carry
        )
        coming.append(pictures)
        if number:
            frames = jax.device_get(coming.pop(0)).shape[1]
            fetched.append(time.perf_counter())
        if number == warm:
            first = _bytes((state, carry))
    times = np.diff(fetched)[-chunks:].tolist()
    for _ in range(-(-chunks // 4)):  # of these denoising alone is timed
        jax.block_until_ready((state, coming))
        began = time.perf_counter()
        state, latents = programs.stream_on(network, params, told, stream_rows, state)
        jax.block_until_ready(latents)
        parts.append(time.perf_counter() - began)
    slope, error = line(times)
    median = statistics.median(times)
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(shapes["model"])),
        "calls": stream_rows.cycle.num_rows,
        "frames": frames,
        "seconds": median,
        "denoise_seconds": statistics.median(parts),
        "slowest": float(np.quantile(times, 0.99)),
        "fps": frames / median,
        "slope": slope,
        "slope_error": error,
        "held": first,
        "held_later": _bytes((state, carry)),
    }


def _fill(rows: StreamRows, policy: Any) -> int:
    """Returns after how many chunks a cache is full."""
    return -(-policy.held // rows.block) if isinstance(policy, CachedCausal) else 0


def _bytes(tree: PyTree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def line(times: list[float]) -> tuple[float, float]:
    """Returns the slope of a straight line through times, and its standard deviation."""
    at = np.arange(len(times)) - (len(times) - 1) / 2
    spread = float(np.sum(at**2))
    if len(times) < 3:
        return 0.0, float("inf")
    y: Any = np.asarray(times) - np.mean(times)
    slope = float(at @ y) / spread
    rest = y - slope * at
    return slope, float(np.sqrt(rest @ rest / (len(times) - 2) / spread))
