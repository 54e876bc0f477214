"""Devices by name and shape, such as `v5e:2x4`, that are there or not, and what they can do."""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from jax.experimental import topologies
from jax.sharding import Mesh

from jvdm.errors import ConfigError
from jvdm.parallel import mesh_of

LIBTPU = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
"""Environment of a libtpu that has no TPU."""

HOST = (2, 2, 1)
"""Chips of a host, as libtpu takes them unless told otherwise; smaller shapes are parts of one."""


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
GPUS = ("h100", "h200")


def target(on: str, mesh: str) -> tuple[str, Mesh]:
    """Returns the kind of the devices, and the mesh of them."""
    kind, _, shape = on.partition(":")
    if short := re.fullmatch(r"(h\d+)x(\d+)", on):
        kind, shape = short.groups()
    if kind == "cpu":
        return kind, mesh_of(mesh)
    if kind not in MACHINES or not re.fullmatch(r"\d+(x\d+)*|", shape):
        why = f"known are {', '.join(MACHINES)} and cpu"
        raise ConfigError(f"--on is {on!r}", why, "write it like v5e:2x4, v5p:2x2x2 or h200:8")
    if kind in GPUS:
        return kind, mesh_of(mesh, [None] * int(shape or 1))
    if not shape:
        raise ConfigError(f"--on is {on!r}", "a TPU has a shape", f"write it like {kind}:2x4")
    for name, value in LIBTPU.items():
        os.environ.setdefault(name, value)
    sizes = [*map(int, shape.split("x")), 1, 1][:3]
    bounds = [min(size, most) for size, most in zip(sizes, HOST, strict=True)]
    small = {} if bounds == list(HOST) else {"chips_per_host_bounds": bounds}
    try:
        with without_flags():
            devices = topologies.get_topology_desc(on, "tpu", **small).devices
    except (RuntimeError, NotImplementedError) as error:
        fix = "pip install libtpu, and use a shape that it knows"
        raise ConfigError(f"--on is {on!r}", str(error).splitlines()[0], fix) from None
    return kind, mesh_of(mesh, devices)


@contextlib.contextmanager
def without_flags() -> Iterator[None]:
    """Hides flags of XLA that libtpu, which ends the process at one that it lacks, would read."""
    flags = os.environ.pop("XLA_FLAGS", None)
    try:
        yield
    finally:
        if flags is not None:
            os.environ["XLA_FLAGS"] = flags
