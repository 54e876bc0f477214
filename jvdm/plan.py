"""`jvdm plan`: what a run will need on devices that are not there.

The real program, a training step or a call of a published network, is compiled for them ahead of
time: for TPUs with libtpu, for CPUs with those of this machine. What a device then holds is what
the compiler says. Programs for GPUs cannot be compiled without one: there the plan counts arrays
and the largest product, and says so.
"""

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jvdm.arrays import PyTree
from jvdm.errors import ConfigError, DeviceMemoryError
from jvdm.families import FAMILIES, Family
from jvdm.machine import free_memory, is_out_of_memory
from jvdm.models.stand_in import told
from jvdm.parallel import batch_sharding, data_mesh, mesh_of, parts, shardings, using
from jvdm.parallel.collectives import sent
from jvdm.parallel.mesh import description_of
from jvdm.pipeline.loading import kind_in
from jvdm.products import product_bytes, product_flops
from jvdm.recipes import load_experiment, load_family
from jvdm.samplers import Call
from jvdm.training import setup
from jvdm.training.objective import GivenBatch
from jvdm.training.step import make_step

LIBTPU = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
"""Environment of a libtpu that has no TPU."""
WAN = FAMILIES["wan-1.3b-480p"]
_WIDER = {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824}
NETWORKS: Mapping[str, Family] = {
    **FAMILIES,
    "wan-14b-480p": WAN._replace(transformer={**WAN.transformer, **_WIDER}),
}
"""Published networks, at the sizes of one video."""


class Machine(NamedTuple):
    """A device, by its data sheet.

    Attributes:
        memory: Bytes.
        flops: Operations per second in bfloat16; 0 is not known.
        reads: Bytes of memory per second.
        sends: Bytes per second to other devices, over all links.
    """

    memory: float
    flops: float
    reads: float
    sends: float


MACHINES = {
    "v4": Machine(32e9, 275e12, 1.228e12, 300e9),
    "v5e": Machine(16e9, 197e12, 0.819e12, 200e9),
    "v5p": Machine(95e9, 459e12, 2.765e12, 600e9),
    "v6e": Machine(32e9, 918e12, 1.64e12, 448e9),
    "h100": Machine(80e9, 989e12, 3.35e12, 450e9),
    "h200": Machine(141e9, 989e12, 4.8e12, 450e9),
}
_GPUS = ("h100", "h200")


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """Says what a run will need on devices that are not there."""

    config: str = "nano"
    """A training config, or a published network: wan-1.3b-480p, wan-14b-480p, ltx-2b-512p."""
    on: str = "v5e:2x4"
    """The devices: v5e:2x4, v5p:2x2x2, v6e:2x4, h200:8, cpu."""
    mesh: str = "auto"
    """How they share the work: fsdp=4,sequence=2; auto splits the batch."""


class Work(NamedTuple):
    """A program to compile, and its arguments as shapes.

    Attributes:
        name: What it is.
        run: The function.
        held: Arguments by what they are; those of training are donated.
        donated: Names of the arguments that are used up.
        flops: Operations of the products on all devices together.
        largest: Bytes of the largest product with weights, on all devices together.
    """

    name: str
    run: Callable[..., Any]
    held: Mapping[str, PyTree]
    donated: tuple[str, ...]
    flops: float
    largest: int


def run(options: PlanOptions) -> dict[str, Any]:
    """Carries out `jvdm plan`.

    Raises:
        ConfigError: If there is no such config or machine, or libtpu is not installed.
        DeviceMemoryError: If it does not fit; it says what to change.
    """
    kind, mesh = _target(options.on, options.mesh)
    network = NETWORKS.get(options.config)
    work = _step(options.config, mesh) if network is None else _call(options.config, network, mesh)
    found: dict[str, Any] = {"program": work.name, "on": options.on}
    found["mesh"] = description_of(mesh)
    held = {name: _bytes_on_a_device(tree, mesh) for name, tree in work.held.items()}
    moved: Mapping[str, int] = {}
    if kind in _GPUS:
        found["how"] = "counted, not compiled: arrays, and the largest product with weights"
        temporaries = work.largest // mesh.size
    else:
        found["how"] = "compiled for these devices"
        compiled = _compiled(work, mesh)
        sizes: Any = compiled.memory_analysis()
        fresh = max(sizes.output_size_in_bytes - sizes.alias_size_in_bytes, 0)
        temporaries, moved = sizes.temp_size_in_bytes + fresh, sent(compiled.as_text())
    peak = sum(held.values()) + temporaries
    machine = MACHINES.get(kind)
    limit = machine.memory if machine else free_memory() or math.inf
    bytes_of = {**held, "temporaries": temporaries, "peak": peak, "limit": int(min(limit, 2**62))}
    found |= {"bytes_per_device": bytes_of, "sent_per_device": dict(moved)}
    found["flops"] = work.flops
    if machine:
        found |= _roofline(machine, work.flops / mesh.size, peak, sum(moved.values()))
    if peak > limit:
        _refuse(found, mesh)
    return found


def text(result: Mapping[str, Any]) -> str:
    """Says the same as a table."""
    lines = [f"{result['program']} on {result['on']}, mesh {result['mesh']} ({result['how']})"]
    lines += _table("bytes of a device", result["bytes_per_device"])
    lines += _table("bytes that a device sends", result["sent_per_device"])
    lines.append(f"{result['flops']:.3g} operations on all devices")
    if "seconds" in result:
        times = ", ".join(f"{name} {value:.3g} s" for name, value in result["seconds"].items())
        lines += [f"at least {max(result['seconds'].values()):.3g} s: {times}", result["assumed"]]
    return "\n".join(lines)


def _table(title: str, rows: Mapping[str, int]) -> list[str]:
    width = max(map(len, rows), default=0)
    return [f"{title}:"] + [f"  {name:<{width}}  {n / 1e9:9.3f} GB" for name, n in rows.items()]


def _target(on: str, mesh: str) -> tuple[str, Mesh]:
    """Returns the kind of the devices, and the mesh of them."""
    kind, _, shape = on.partition(":")
    if kind == "cpu":
        return kind, mesh_of(mesh)
    if kind not in MACHINES or not re.fullmatch(r"\d+(x\d+)*|", shape):
        why = f"known are {', '.join(MACHINES)} and cpu"
        raise ConfigError(f"--on is {on!r}", why, "write it like v5e:2x4, v5p:2x2x2 or h200:8")
    if kind in _GPUS:
        return kind, mesh_of(mesh, [None] * int(shape or 1))
    if not shape:
        raise ConfigError(f"--on is {on!r}", "a TPU has a shape", f"write it like {kind}:2x4")
    for name, value in LIBTPU.items():
        os.environ.setdefault(name, value)
    try:
        with _no_flags():
            devices = topologies.get_topology_desc(on, "tpu").devices
    except (RuntimeError, NotImplementedError) as error:
        fix = "pip install libtpu, and use a shape that it knows"
        raise ConfigError(f"--on is {on!r}", str(error).splitlines()[0], fix) from None
    return kind, mesh_of(mesh, devices)


@contextlib.contextmanager
def _no_flags() -> Iterator[None]:
    """Hides flags of XLA that libtpu, which ends the process at one that it lacks, would read."""
    flags = os.environ.pop("XLA_FLAGS", None)
    try:
        yield
    finally:
        if flags is not None:
            os.environ["XLA_FLAGS"] = flags


def _step(config: str, mesh: Mesh) -> Work:
    """Returns the training step of a config, of batches that are there."""
    experiment = load_experiment(config)
    objective, source = experiment.objective, experiment.source
    transform = setup.transform_of(objective, experiment.optimizer, experiment.num_steps)
    size = experiment.batch_size
    if size % parts(mesh):
        what = f"a batch of {size} cannot be split over {parts(mesh)} devices"
        raise ConfigError(what, "", f"use a batch size that is a multiple of {parts(mesh)}")

    def drawn() -> PyTree:
        return source.draw(source.start(0, None, data_mesh(1)), jnp.int32(0), size)[0]

    state: Any = setup.state_shapes(objective, transform, experiment.seed, mesh)
    batch = _placed(jax.eval_shape(drawn), batch_sharding(mesh))
    step = make_step(objective, GivenBatch(batch), transform, size, experiment.ema_decay)

    def run(parameters: PyTree, optimizer: Any, batch: PyTree) -> PyTree:
        made: Any = step.run({}, optimizer.replace(params=parameters), batch)
        return made[0].params, made[0].replace(params=None), made[2]

    held = {"parameters": state.params, "optimizer": state.replace(params=None), "batch": batch}
    name = f"a training step of {experiment.name}, {size} clips"
    flops = step.flops({}, state, batch)
    largest = product_bytes(run, *held.values(), scores=False)
    return Work(name, run, held, ("parameters", "optimizer"), flops, largest)


def _call(name: str, family: Family, mesh: Mesh) -> Work:
    """Returns a call of a published network, of one video, in bfloat16."""
    network = load_family(family.pipeline).transformer(family.transformer).clone(dtype="bfloat16")

    def forward(parameters: PyTree, latents: Any, states: Any) -> Any:
        call = Call.at(jnp.full(latents.shape[:2], 500.0))
        return network.apply({"params": parameters}, latents, call, told(states))[0]

    def init() -> PyTree:
        frames, small = Call.at(jnp.zeros((1, 1))), (1, 1, network.patch, network.patch)
        channels, states = family.latents[3], jnp.zeros((1, *family.prompt))
        latents = jnp.zeros((*small, channels))
        return network.init(jax.random.key(0), latents, frames, told(states))["params"]

    kind = kind_in(network)

    def typed(path: Any, leaf: Any, place: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, kind(path, leaf.dtype), sharding=place)

    shapes, everywhere = jax.eval_shape(init), NamedSharding(mesh, PartitionSpec())
    held = {
        "parameters": jax.tree_util.tree_map_with_path(typed, shapes, shardings(shapes, mesh)),
        "latents": jax.ShapeDtypeStruct((1, *family.latents), "float32", sharding=everywhere),
        "prompt": jax.ShapeDtypeStruct((1, *family.prompt), "bfloat16", sharding=everywhere),
    }
    flops = product_flops(forward, *held.values())
    largest = product_bytes(forward, *held.values(), scores=False)
    return Work(f"a call of {name}, one video", forward, held, (), flops, largest)


def _placed(tree: PyTree, place: NamedSharding) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def _compiled(work: Work, mesh: Mesh) -> Any:
    """Compiles a program for the devices of a mesh."""
    names = tuple(work.held)
    donated = tuple(names.index(name) for name in work.donated)
    places = None
    if work.donated:
        leaves = [jax.tree.map(lambda x: x.sharding, work.held[name]) for name in work.donated]
        places = (*leaves, None)
    jitted = jax.jit(work.run, donate_argnums=donated, out_shardings=places)
    try:
        with using(mesh), _no_flags():
            return jitted.lower(*work.held.values()).compile()
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        what = f"{work.name} does not fit on the mesh {description_of(mesh)}"
        fix = f"split tokens, videos or parameters further: {' or '.join(_next(mesh))}"
        raise DeviceMemoryError(what, str(error).splitlines()[0], fix) from None


def _bytes_on_a_device(tree: PyTree, mesh: Mesh) -> int:
    """Returns the bytes of arrays that one device holds."""

    def of(leaf: Any) -> int:
        shape = leaf.sharding.shard_shape(leaf.shape)
        kind = leaf.dtype
        item = 8 if jnp.issubdtype(kind, jax.dtypes.prng_key) else kind.itemsize
        return math.prod(shape) * item

    return sum(map(of, jax.tree.leaves(tree)))


def _roofline(machine: Machine, flops: float, peak: int, moved: int) -> dict[str, Any]:
    """Returns the least time of the program by what limits it, and what that assumes."""
    seconds = {
        "products": flops / machine.flops,
        "memory": peak / machine.reads,
        "interconnect": moved / machine.sends,
    }
    assumed = (
        f"assumed: {machine.flops / 1e12:.0f} TFLOP/s, each byte of the peak is read once at "
        f"{machine.reads / 1e9:.0f} GB/s, all links together send {machine.sends / 1e9:.0f} GB/s, "
        "and the three overlap"
    )
    return {"seconds": seconds, "assumed": assumed}


def _refuse(found: Mapping[str, Any], mesh: Mesh) -> None:
    """Raises the error of a program that does not fit, with the axis to change."""
    sizes = found["bytes_per_device"]
    rest = [name for name in sizes if name not in ("peak", "limit")]
    most = max(rest, key=sizes.get)
    each = ", ".join(f"{name} {sizes[name] / 1e9:.1f}" for name in rest)
    what = f"{found['program']} needs {sizes['peak'] / 1e9:.1f} GB of a device: {each}"
    why = f"a device of {found['on']} has {sizes['limit'] / 1e9:.1f} GB"
    left = sizes["peak"] - sizes[most] / 2
    fix = _next(mesh)[0 if most == "temporaries" else 1]
    fix = f"{fix} halves what {most} take: about {left / 1e9:.1f} GB"
    raise DeviceMemoryError(what, why, f"{fix}, on more devices or instead of another axis")


def _next(mesh: Mesh) -> tuple[str, str]:
    """Returns twice the parts of tokens, and of parameters."""
    sequence, fsdp = (2 * mesh.shape.get(axis, 1) for axis in ("sequence", "fsdp"))
    return f"sequence={sequence}", f"fsdp={fsdp}"
