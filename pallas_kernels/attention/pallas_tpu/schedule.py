"""Compiles the TPU kernels without a TPU, and reads memory and static schedule of what comes out.

It needs the wheel libtpu, and the environment `ALONE` before that is loaded.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pallas_kernels.attention.kernel import attend
from pallas_kernels.attention.pallas_tpu import PallasTPU
from pallas_kernels.attention.pallas_tpu.tiles import Limits, Tiles
from pallas_kernels.block_mask import BlockMask

TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
FLOPS_PER_CYCLE = {  # peak in bf16 over clock, per core: data sheets; the clock of v6e is a guess
    "v4": 275e12 / 2 / 1.05e9,
    "v5e": 197e12 / 1.5e9,
    "v5p": 459e12 / 2 / 1.75e9,
    "v6e": 918e12 / 1.75e9,
}
# For a compiler that has no TPU, and may share its machine with others.
ALONE = {
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "XLA_FLAGS": "",  # libtpu ends the process at a flag of a CPU or GPU
}
PASSES = {"forward": 2, "backward_q": 3, "backward_kv": 4}  # matrix products of each
HEADS, LENGTH = 2, 8192


def chips(chip: str) -> Any:
    """Returns devices of a kind that are not there."""
    return np.array(topologies.get_topology_desc(TOPOLOGIES[chip], "tpu").devices)


def mask_like(heads: int, length: int, block: int, listed: int, *, places: bool = False) -> Any:
    """Returns the shapes of a mask whose lists have room for some blocks."""
    rows = -(-length // block)

    def ints(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    return BlockMask(
        ints(1, heads, rows, listed),
        ints(1, heads, rows),
        ints(1, heads, rows) if places else None,
        q_coords=ints(1, length) if places else None,
        kv_coords=ints(1, length) if places else None,
        block_q=block,
        block_kv=block,
        q_len=length,
        kv_len=length,
        causal_time=places,
    )


def compiled(
    chip: str,
    mask: Any,
    heads: int,
    *,
    size: int = 128,
    backward: bool = False,
    kernel: PallasTPU | None = None,
) -> Any:
    """Compiles attention, or its gradients, for one core of a chip."""
    mesh = Mesh(chips(chip)[:1], ("x",))
    x = jax.ShapeDtypeStruct((1, mask.q_len, heads, size), jnp.bfloat16)

    def run(q: Any, k: Any, v: Any, mask: BlockMask) -> Any:
        def values(*arrays: Any) -> Any:
            both: Any = attend(kernel or PallasTPU(), *arrays, mask, size**-0.5)
            return both[0]

        if not backward:
            return values(q, k, v)
        _, pull = jax.vjp(values, q, k, v)
        return pull(q)

    place = NamedSharding(mesh, PartitionSpec())
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        jitted = jax.jit(run, in_shardings=place, out_shardings=place)
        return jitted.lower(x, x, x, mask).compile()


def vector_memory(compiled: Any) -> dict[str, int]:
    """Returns the bytes of vector memory that each kernel uses."""
    found = {}
    for line in compiled.as_text().splitlines():
        name = re.search(r"block_sparse_attention_(\w+?)_*\.\d+ = .*tpu_custom_call", line)
        used = re.search(
            r'"used_scoped_memory_configs":\[\{"memory_space":"1".*?"size":"(\d+)"', line
        )
        if name and used:
            found[name[1]] = int(used[1])
    return found


class Loop(NamedTuple):
    """The inner loop of a kernel: instructions of a step without masks and with them."""

    plain: int
    masked: int


def inner_loop(bundles: str) -> Loop:
    """Reads a final schedule: one line per instruction, `>` for each loop around it."""
    depths, products = [], []
    for line in bundles.splitlines():
        found = re.match(r"\s*(?:0x[0-9a-f]+|0)\s+((?:[A-Z]{2}\s*)*):\s*(>*)", line)
        if not found:
            continue
        label, depth = found[1].strip(), len(found[2])
        if label or not depths or depths[-1][0] != depth:
            depths.append([depth, 0])
            products.append(0)
        depths[-1][1] += 1
        products[-1] += "vmatmul" in line
    bodies = [n for (_, n), some in zip(depths, products, strict=True) if some]
    rest = sum(
        n for (depth, n), some in zip(depths, products, strict=True) if depth == 2 and not some
    )
    plain, masked = bodies
    return Loop(rest + plain, rest + masked)


def loops(
    chip: str, block: int, limits: Iterable[Limits | None] = (None,), size: int = 128
) -> list[dict[str, Loop]]:
    """Returns the inner loop of each pass, for every choice of what a step computes.

    Another process compiles, because the compiler reads its options once. None is the choice of
    the tables. A choice that does not compile has no loops, and all have none where the compiler
    writes no schedule.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        options += " --xla_jf_dump_llo_pass_label_regex=final_bundles"
        command = [sys.executable, "-m", __spec__.name, chip, str(block), str(size), folder]
        done = subprocess.run(
            [*command, json.dumps(list(limits))],
            env={**os.environ, **ALONE, "LIBTPU_INIT_ARGS": options},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    found = json.loads(done.stdout.splitlines()[-1])
    return [{name: Loop(*loop) for name, loop in each.items()} for each in found]


def busy(chip: str, block: int, part: str, loop: Loop, limits: Limits | None = None) -> float:
    """Returns the share of a step in which the matrix unit must work, at its peak and D = 128."""
    tiles = Tiles.of(block, block, LENGTH, limits or Limits.of(chip, part, block))
    flops = 2 * PASSES[part] * tiles.q * tiles.keys * tiles.parts * 128
    return flops / FLOPS_PER_CYCLE[chip] / loop.plain


def _dumped(chip: str, block: int, size: int, folder: Path, limits: Any) -> dict[str, Loop]:
    """Compiles both passes, and reads and removes what the compiler writes."""
    jax.config.update("jax_enable_compilation_cache", False)  # or nothing is compiled
    kernel = PallasTPU(limits=None if limits is None else Limits(*limits))
    try:
        mask = mask_like(HEADS, LENGTH, block, LENGTH // block)
        compiled(chip, mask, HEADS, size=size, backward=True, kernel=kernel)
    except jax.errors.JaxRuntimeError:  # memory does not suffice
        return {}
    texts: dict[str, str] = {}
    for path in folder.iterdir():
        name = re.sub(r"[.-]", "_", path.name)
        part = next((part for part in PASSES if f"attention_{part}_" in name), "")
        if part and path.name.endswith("final_bundles.txt"):
            texts[part] = max(path.read_text(errors="replace"), texts.get(part, ""), key=len)
        path.unlink()
    return {part: inner_loop(text) for part, text in texts.items()}


if __name__ == "__main__":
    chip, block, size, folder, listed = sys.argv[1:]
    results = [
        _dumped(chip, int(block), int(size), Path(folder), limits) for limits in json.loads(listed)
    ]
    print(json.dumps(results))
