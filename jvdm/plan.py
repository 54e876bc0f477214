"""`jvdm plan`: what a run will need on devices that are not there.

The real program, a training step, a call of a published network or all of what makes a video, is
compiled for them ahead of time: for TPUs with libtpu, for CPUs with those of this machine. What a
device then holds is what the compiler says. Activations, which a pass forward leaves for the one
backward, are counted from the program (`jvdm.training.residuals`): a compiler has them among its
temporaries.

Programs for GPUs cannot be compiled without NVIDIA's libraries: there all is counted and said to
be. The program is traced with the number types and the attention that it has there, and a device
holds arrays, activations, gradients and the largest product with weights; it sends what parameters,
gradients and attention ask for. Of an update of an objective's own activations are not counted.
"""

import contextlib
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from jvdm import works
from jvdm.errors import DeviceMemoryError
from jvdm.families import FAMILIES
from jvdm.machine import free_memory, is_out_of_memory
from jvdm.parallel import using
from jvdm.parallel.collectives import sent
from jvdm.parallel.foreseen import foreseen
from jvdm.parallel.mesh import BATCH, TOKENS, description_of, parts
from jvdm.products import device_bytes
from jvdm.targets import GPUS, MACHINES, Machine, target, without_flags
from jvdm.works import Work
from pallas_kernels import traced_for_gpu


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """Says what a run will need on devices that are not there."""

    config: str = "nano"
    """A training config, or a published network: wan-1.3b-480p, wan-14b-720p, ltx-2b-512p, ..."""
    on: str = "v5e:2x4"
    """The devices: v5e:2x4, v5p:2x2x2, v6e:2x4, h200x8, cpu."""
    mesh: str = "auto"
    """How they share the work: fsdp=4,sequence=2; auto splits the batch."""
    work: Literal["auto", "step", "call", "video"] = "auto"
    """Of a network: a training step, a call, or a video from prompt to frames; auto is the step of
    a config and the call of a network."""


def run(options: PlanOptions) -> dict[str, Any]:
    """Carries out `jvdm plan`.

    Returns:
        `on`, `mesh`, `how`; `programs`, one or, of a video, three, each with its bytes, operations
        and seconds; and of them together `peak`, for the parameters of all networks stay.

    Raises:
        ConfigError: If there is no such config or machine, or libtpu is not installed.
        DeviceMemoryError: If it does not fit; it says what to change.
    """
    kind, mesh = target(options.on, options.mesh)
    with traced_for_gpu() if kind in GPUS else contextlib.nullcontext():
        planned = [_planned(work, kind, mesh) for work in _works(options, mesh)]
    limit = MACHINES[kind].memory if kind in MACHINES else free_memory() or math.inf
    how = "compiled for these devices"
    if kind in GPUS:
        how = "counted, not compiled: arrays, activations, gradients, the largest product"
    found: dict[str, Any] = {"on": options.on, "mesh": description_of(mesh), "how": how}
    stays = sum(one["bytes_per_device"]["parameters"] for one in planned)
    for one in planned:
        sizes = one["bytes_per_device"]
        others = stays - sizes["parameters"]
        sizes |= {"other networks": others} if others else {}
        sizes |= {"peak": sum(sizes.values()), "limit": int(min(limit, 2**62))}
        if machine := MACHINES.get(kind):
            moved = sum(one["sent_per_device"].values())
            one |= _roofline(machine, one, mesh, moved)
        if sizes["peak"] > limit:
            _refuse(one, options.on, mesh)
    found |= {"programs": planned, "flops": sum(one["flops"] for one in planned)}
    found["peak"] = max(one["bytes_per_device"]["peak"] for one in planned)
    if kind in MACHINES:
        found["seconds"] = sum(one["times"] * max(one["seconds"].values()) for one in planned)
    return found


def _works(options: PlanOptions, mesh: Mesh) -> Sequence[Work]:
    if options.config not in FAMILIES:
        return (works.step_of_config(options.config, mesh),)
    if options.work == "video":
        return works.video_of(options.config, mesh)
    one = works.step_of_network if options.work == "step" else works.call_of
    return (one(options.config, mesh),)


def _planned(work: Work, kind: str, mesh: Mesh) -> dict[str, Any]:
    """Returns what one program needs; rows of no bytes are left out, but for temporaries."""
    held = {name: device_bytes(tree) for name, tree in work.held.items()}
    kept = work.kept // parts(mesh, (*BATCH, *TOKENS))
    moved: Mapping[str, int] = {}
    if kind in GPUS:
        temporaries = work.largest // mesh.size + (held["parameters"] if work.trains else 0)
        if mesh.size > 1:
            with using(mesh):
                jaxpr = jax.make_jaxpr(work.run)(*work.held.values()).jaxpr
            moved = foreseen(jaxpr, work.held["parameters"], mesh, trains=work.trains)
    else:
        compiled = _compiled(work, mesh)
        sizes: Any = compiled.memory_analysis()
        fresh = max(sizes.output_size_in_bytes - sizes.alias_size_in_bytes, 0)
        temporaries, moved = sizes.temp_size_in_bytes + fresh, sent(compiled.as_text())
        kept = min(kept, temporaries)
        temporaries -= kept
    activations = {"activations": kept} if kept else {}
    return {
        **{"program": work.name, "times": work.times, "flops": work.flops},
        "bytes_per_device": {**held, **activations, "temporaries": temporaries},
        "sent_per_device": dict(moved),
    }


def text(result: Mapping[str, Any]) -> str:
    """Says the same as a table."""
    lines = [f"on {result['on']}, mesh {result['mesh']} ({result['how']})"]
    for one in result["programs"]:
        often = "" if one["times"] == 1 else f", {one['times']} times"
        lines += ["", f"{one['program']}{often}"]
        lines += _table("bytes of a device", one["bytes_per_device"])
        lines += _table("bytes that a device sends", one["sent_per_device"])
        lines.append(f"{one['flops']:.3g} operations on all devices")
        if "seconds" in one:
            times = ", ".join(f"{name} {value:.3g} s" for name, value in one["seconds"].items())
            lines.append(f"at least {max(one['seconds'].values()):.3g} s each time: {times}")
    lines += ["", f"peak {result['peak'] / 1e9:.3f} GB of a device"]
    if "seconds" in result:
        lines += [f"at least {result['seconds']:.3g} s", result["programs"][0]["assumed"]]
    return "\n".join(lines)


def _table(title: str, rows: Mapping[str, int]) -> list[str]:
    width = max(map(len, rows), default=0)
    return [f"{title}:"] + [f"  {name:<{width}}  {n / 1e9:9.3f} GB" for name, n in rows.items()]


def _compiled(work: Work, mesh: Mesh) -> Any:
    """Compiles a program for the devices of a mesh."""
    names = tuple(work.held)
    donated = tuple(names.index(name) for name in work.gives if name)
    places: Any = tuple(
        name and jax.tree.map(lambda leaf: leaf.sharding, work.held[name]) for name in work.gives
    )
    jitted = jax.jit(work.run, donate_argnums=donated, out_shardings=places or None)
    try:
        with using(mesh), without_flags():
            return jitted.lower(*work.held.values()).compile()
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        what = f"{work.name} does not fit on the mesh {description_of(mesh)}"
        sequence, fsdp = _next(mesh)
        fix = f"split tokens, videos or parameters further: {sequence} or {fsdp}"
        if needed := re.search(r"\(([\d.]+)G\)", str(error)):  # GiB that the compiler asks for
            half = float(needed[1]) * 2**30 / 2
            fix = f"{sequence} halves what is computed: about {half / 1e9:.1f} GB; or use {fsdp}"
        raise DeviceMemoryError(what, str(error).splitlines()[0], fix) from None


def _roofline(machine: Machine, one: Mapping[str, Any], mesh: Mesh, moved: int) -> dict[str, Any]:
    """Returns the least time of a program by what limits it, and what that assumes."""
    sizes = one["bytes_per_device"]
    read = sizes["peak"] - sizes.get("other networks", 0)
    seconds = {
        "products": one["flops"] / one["times"] / mesh.size / machine.flops,
        "memory": read / machine.reads,
        "interconnect": moved / machine.sends,
    }
    assumed = (
        f"assumed: {machine.flops / 1e12:.0f} TFLOP/s, each byte of the peak is read once at "
        f"{machine.reads / 1e9:.0f} GB/s, all links together send {machine.sends / 1e9:.0f} GB/s, "
        "and the three overlap"
    )
    return {"seconds": seconds, "assumed": assumed}


def _refuse(one: Mapping[str, Any], on: str, mesh: Mesh) -> None:
    """Raises the error of a program that does not fit, with the axis to change."""
    sizes = one["bytes_per_device"]
    rest = [name for name in sizes if name not in ("peak", "limit")]
    most = max(rest, key=sizes.get)
    each = ", ".join(f"{name} {sizes[name] / 1e9:.1f}" for name in rest)
    what = f"{one['program']} needs {sizes['peak'] / 1e9:.1f} GB of a device: {each}"
    why = f"a device of {on} has {sizes['limit'] / 1e9:.1f} GB"
    left = sizes["peak"] - sizes[most] / 2
    fix = _next(mesh)[0 if most in ("activations", "temporaries") else 1]
    fix = f"{fix} halves what {most} take: about {left / 1e9:.1f} GB"
    raise DeviceMemoryError(what, why, f"{fix}, on more devices or instead of another axis")


def _next(mesh: Mesh) -> tuple[str, str]:
    """Returns twice the parts of tokens, and of parameters."""
    sequence, fsdp = (2 * mesh.shape.get(axis, 1) for axis in ("sequence", "fsdp"))
    return f"sequence={sequence}", f"fsdp={fsdp}"
