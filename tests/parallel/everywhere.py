"""Runs in a process of eight CPU devices: what meshes compute, and what one device does.

`python -m tests.parallel.everywhere few|rest|more|batch` prints one line of JSON for every row of a
table: the largest differences from one device, in parts of the largest number where there is one.
Three heads, 72 tokens, two videos, 5 and 9 frames: most of it does not divide. `batch` compares
videos in a batch, on one device and on a few, with the same videos alone. Tests compute all.
"""

import functools
import json
import math
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax

jax.config.update("jax_num_cpu_devices", 8)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import jvdm  # noqa: E402
from jvdm import samplers  # noqa: E402
from jvdm.attention import CachedCausal, Draft, LevelBank, TemporalSwin  # noqa: E402
from jvdm.models import Conditions, TextStates, VideoDiT  # noqa: E402
from jvdm.models.low_rank import Adapted  # noqa: E402
from jvdm.models.ltx import LTXDiT  # noqa: E402
from jvdm.models.state_space import Mamba2  # noqa: E402
from jvdm.models.wan import WanDiT  # noqa: E402
from jvdm.parallel import mesh_of, place, replicate, split_batch, using  # noqa: E402
from jvdm.parallel.collectives import sent  # noqa: E402
from jvdm.pipeline import Request, programs  # noqa: E402
from jvdm.samplers import Call, ClassifierFree, ShiftedLevels  # noqa: E402
from jvdm.system import Sampling, System  # noqa: E402
from jvdm.text.t5 import T5  # noqa: E402
from jvdm.vae.latent_space import LatentSpace  # noqa: E402
from jvdm.vae.wan import WanVAE  # noqa: E402
from jvdm.weights.safetensors import flatten, unflatten  # noqa: E402
from tests.generate.nano import QUICKLY, TEXT, VAE, drawn, write_weights  # noqa: E402

# Gradients are those of every parameter; `remat` is off because it doubles the time of
# compilation and is XLA's matter.
SIZES: Any = {"width": 48, "depth": 2, "latent_channels": 4, "dtype": "float32", "remat": "none"}
DIT = VideoDiT(**SIZES, head_dim=16, rotary_axes=(4, 6, 6))
NETWORKS: dict[str, Any] = {
    "dense": DIT,
    "lora": DIT,
    "draft": DIT.clone(policy=Draft(0.3, block=4)),
    "cached": DIT.clone(policy=CachedCausal(frames=3)),
    "levels": DIT.clone(policy=LevelBank(2, 3, 1)),
    "scans": DIT.clone(policy=TemporalSwin((2, 2, 2)), scan=Mamba2(8, chunk=16, review=(2, 2, 2))),
    "wan": WanDiT(**SIZES, head_dim=12, mlp_width=64),
    "ltx": LTXDiT(**SIZES, head_dim=12, mlp_width=64),
}
LEVELS = ShiftedLevels(2, 2.0)()
MATRIX = samplers.SynchronousMatrix()(LEVELS, 3)
MATRICES = {
    "cached": samplers.cached(samplers.lag_matrix(LEVELS, 3, 2)),
    "levels": samplers.cached_by_level(samplers.lag_matrix(LEVELS, 3, 1)),
}
VAES = {"wan": WanVAE(4, 8, multiples=(1, 2), blocks=1, time=(True,), dtype="float32"), "own": VAE}
TABLES = {
    "few": (
        ("train dense", "fsdp=2,sequence=4"),
        ("sample dense", "branch=2,data=2,tensor=2"),
        ("moved wan", "data=2,fsdp=2,tensor=2"),
    ),
    "rest": (
        ("train draft", "ring=4,sequence=2"),
        ("train wan", "data=2,fsdp=2,tensor=2"),
        ("train scans", "ring=2,sequence=4"),
        ("moved dense", "data=2,fsdp=2,tensor=2"),
        ("moved ltx", "data=2,fsdp=2,tensor=2"),
        ("sample draft", "branch=2,ring=2,sequence=2"),
        ("sample cached", "branch=2,fsdp=2,sequence=2"),
        ("sample lora", "fsdp=2,tensor=4"),
        ("text", "fsdp=4,tensor=2"),
        ("code wan", "ring=2,sequence=4"),
    ),
    "more": (
        ("train dense", "data=8"),
        ("train dense", "sequence=8"),
        ("train dense", "ring=8"),
        ("train dense", "tensor=8"),
        ("train draft", "fsdp=2,sequence=4"),
        ("train draft", "data=2,ring=2,tensor=2"),
        ("train wan", "ring=2,sequence=2,tensor=2"),
        ("sample dense", "ring=8"),
        ("sample draft", "data=2,sequence=4"),
        ("sample cached", "ring=4,tensor=2"),
        ("sample levels", "branch=2,data=2,sequence=2"),
        ("sample levels", "branch=2,fsdp=2,sequence=2"),
        ("sample lora", "branch=2,sequence=4"),
        ("code own", "data=2,sequence=4"),
        ("code wan", "sequence=8"),
        ("train draft", "ring=2,sequence=2,tensor=2"),
        ("train wan", "fsdp=2,sequence=2,tensor=2"),
        ("sample wan", "branch=2,sequence=2,tensor=2"),
        ("sample draft", "sequence=4,tensor=2"),
        ("train scans", "data=2,sequence=2,tensor=2"),
        ("stages", "stage=2,branch=2,data=2"),
        ("stages", "stage=2,branch=2,fsdp=2"),
    ),
    "batch": (
        ("batch 4", "data=1"),
        ("batch 4", "data=2"),
        ("batch 4", "data=4"),
        ("batch 8", "data=8"),
        ("batch 4", "fsdp=4"),
        ("batch 4", "branch=2,data=4"),
        *(("batch 1", f"{axis}={n}") for axis in ("sequence", "ring", "tensor") for n in (2, 4, 8)),
    ),
}
TEXT_STATES = TextStates(jax.random.normal(jax.random.key(2), (2, 5, 24)), jnp.array([5, 3]))
TOLD = Conditions(TEXT_STATES)
T = jnp.linspace(0.1, 1.0, 6).reshape(2, 3)
X = jax.random.normal(jax.random.key(1), (2, 3, 8, 12, 4))


def off(one, other):
    """Returns the largest difference of two trees, in parts of the largest number of a leaf."""

    def of(a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        return np.abs(a - b).max() / max(np.abs(a).max(), 1e-3)

    return max(map(of, jax.tree.leaves(one), jax.tree.leaves(other)))


@functools.cache
def parameters(name):
    """Returns those of a network, with gates that are open, so that everything has an effect."""
    params = drawn(NETWORKS[name].init, jax.random.key(0), X, Call.at(T), TOLD)["params"]
    params = jax.tree.map(
        lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(3), leaf.shape), params
    )
    if name != "lora":
        return params
    factors = {}
    for path, leaf in flatten(params).items():
        if "kernel" in path and leaf.ndim == 3:
            depth, rows, columns = leaf.shape
            factors[f"{path}_down"] = 0.05 * jnp.ones((depth, rows, 3))
            factors[f"{path}_up"] = 0.05 * jnp.ones((depth, 3, columns))
    return Adapted(params, (unflatten(factors),), ({},), jnp.array([0.7]))


@functools.cache
def train(name, mesh):
    """Returns prediction, loss and gradients."""

    def loss(params, x):
        with using(mesh):
            y, carry = NETWORKS[name].apply({"params": params}, x, Call.at(T), TOLD)
        return jnp.mean(jnp.square(y)), (y, carry.layers)

    step = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICKLY)
    params = parameters(name)
    made = step(params if mesh is None else place(params, mesh), X)
    return {"prediction": made[0], "gradient": made[1]}


def moved(name, mesh):
    """Returns the prediction of a network whose parameters are sums, two videos for each part.

    One summand lies split, as what a step moves, the other is whole on all devices, as what is
    frozen, so that XLA may choose how products are divided.
    """
    network, params = NETWORKS[name], parameters(name)
    x = jax.random.normal(jax.random.key(5), (8, 3, network.patch, 2 * network.patch, 4))
    states = jax.random.normal(jax.random.key(6), (8, 5, 24))
    given = (x, jnp.linspace(0.1, 1.0, 24).reshape(8, 3), TextStates(states, jnp.full(8, 5)))
    zeros = jax.tree.map(jnp.zeros_like, params)
    if mesh is not None:
        zeros, params = place(zeros, mesh), replicate(params, mesh)
        given = split_batch(given, mesh)

    def predict(zeros, params, x, t, text):
        with using(mesh):
            own, noisy = jax.tree.map(jnp.add, zeros, params), x + jax.random.normal(key, x.shape)
            return network.apply({"params": own}, noisy, Call.at(t), Conditions(text))[0]

    key = jax.random.key(7)
    made = jax.jit(predict, compiler_options=QUICKLY)(zeros, params, *given)
    return {"prediction": made}


@functools.cache
def sample(name, mesh):
    """Returns the noise of two guided videos, their latents after all rows, and operations."""
    rules = Sampling(None, None, guidance=ClassifierFree(2.0))
    system = System(TEXT, NETWORKS[name], VAE, sampling=rules)
    system = system.only("model", "process", "prediction", "solver", "guidance", "noise")
    matrix: Any = MATRICES.get(name, MATRIX)
    seeds = np.array([3, 4], np.uint32)
    params = {"model": parameters(name)}
    if mesh is not None:
        seeds, params = split_batch(seeds, mesh), place(params, mesh)
    states = jnp.concatenate([TEXT_STATES.states, 0.5 * TEXT_STATES.states])
    told = Conditions(TextStates(states, jnp.array([5, 3, 5, 3])))
    state = programs.begin(system, matrix, seeds, None, (), X.shape, mesh)
    noise, fixed = np.asarray(state.x), (system, params, told, matrix)
    program = programs.denoise_row.lower(*fixed, state, np.int32(0), mesh=mesh).compile()
    for row in range(matrix.num_rows):
        state = program(*fixed, state, np.int32(row))
    operations = program.cost_analysis()["flops"]
    return {"noise": noise, "latents": np.asarray(state.x), "operations": operations}


def code(name, mesh):
    """Returns latents and frames of a video, and the bytes that devices gather for the frames."""
    vae = VAES[name]
    pixels = jax.random.uniform(jax.random.key(0), (1, 9, 48, 40, 3))
    params = drawn(vae.init, jax.random.key(0), pixels[:, :1])["params"]
    given = {"vae": LatentSpace(params, jnp.zeros(4), jnp.ones(4))}
    given = given if mesh is None else replicate(given, mesh)
    system = System(None, None, vae).only("vae")
    latents = programs.encode(system, given, pixels, mesh=mesh)
    decoder = programs.decode.lower(system, given, latents, mesh=mesh).compile()
    frames, finite = decoder(system, given, latents)
    gathered = sent(decoder.as_text()).get("all-gather", 0)
    assert finite
    counts = {"gathered": gathered, "operations": decoder.cost_analysis()["flops"]}
    return {"latents": latents, "frames": frames, **counts}


def text(_, mesh):
    """Returns the states of two prompts."""
    encoder = T5(None, 64, 32, 2, 4, 8, 64, dtype="float32")  # pyright: ignore[reportArgumentType]
    ids = jnp.array([[5, 6, 7, 1], [8, 1, 0, 0]])
    params = drawn(encoder.init, jax.random.key(0), ids)
    params = params if mesh is None else place(params, mesh)
    return {"states": jax.jit(encoder.apply, compiler_options=QUICKLY)(params, ids)}


@functools.cache
def pipeline(mesh, **system):
    """Returns a pipeline of random weights."""
    with tempfile.TemporaryDirectory() as folder:
        weights = write_weights(Path(folder))
        return jvdm.load(weights, mesh=mesh, dtype="float32", progress=False, **system)


def stages(_, mesh):
    """Returns the latents and frames of two videos of three blocks, by layers in stages."""
    asked: Any = {"seed": 3, "num_inference_steps": 2, "num_frames": 45, "num_videos": 2}
    pipe = pipeline(mesh, system="dualparal")
    made = pipe.advance(pipe.start(pipe.prepare(Request(prompt="a red ball", **asked)))).state.x
    return {"latents": np.asarray(made), "frames": np.asarray(pipe.decode(made))}


def batch(count, mesh):
    """Returns latents and frames of so many videos, one by one where there is no mesh."""
    pipe, whole = pipeline(mesh), int(count)
    latents, frames = [], []
    for first in range(3, 3 + whole, 1 if mesh is None else whole):
        asked: Any = {"seed": first, "num_inference_steps": 2, "prompt": "a red ball"}
        asked["num_videos"] = 1 if mesh is None else whole
        made = pipe.advance(pipe.start(pipe.prepare(Request(**asked)))).state.x
        latents.append(np.asarray(made))
        frames.append(np.asarray(pipe.decode(made)))
    return {"latents": np.concatenate(latents), "frames": np.concatenate(frames)}


RUN = {"train": train, "moved": moved, "sample": sample, "code": code, "text": text}
RUN |= {"stages": stages, "batch": batch}


def compare(what, description):
    """Returns how far a mesh is off; of counts, those of a device of it beside one alone."""
    kind, _, name = what.partition(" ")
    size = math.prod(int(part) for part in re.findall(r"\d+", description))
    meshes = (mesh_of(description, jax.devices()[:size]), None)
    made, alone = (RUN[kind](name, mesh) for mesh in meshes)

    def of(one, other):
        if isinstance(one, int | float):
            return other / max(one, 1)
        if getattr(one, "dtype", None) == np.uint8:  # bytes, which rounding may make another one
            return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())
        return off(one, other)

    return {key: of(alone[key], made[key]) for key in alone}


if __name__ == "__main__":
    for what, description in TABLES[sys.argv[1]]:
        print(json.dumps({"what": what, "mesh": description} | compare(what, description)))
