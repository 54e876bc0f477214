"""Compiles the TPU kernels without a TPU, and reads memory and static schedule of what comes out.

`ALLOW_MULTIPLE_LIBTPU_LOAD=1 JAX_PLATFORMS=cpu python -m tests.pallas_kernels.schedule v5e 128 256`
prints, for one chip and blocks of 128 and of 256 tokens, which share of the time of an inner loop
its matrix products need; overheads of a loop are counted, those of a row of queries are not.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pallas_kernels import BlockMask
from pallas_kernels.attention.kernel import attend
from pallas_kernels.attention.pallas_tpu import PallasTPU
from pallas_kernels.attention.pallas_tpu.tiles import LEAST_BACKWARD, LEAST_FORWARD, Tiles

TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
FLOPS_PER_CYCLE = {  # peak in bf16 over clock, per core: data sheets; the clock of v6e is a guess
    "v5e": 197e12 / 1.5e9,
    "v5p": 459e12 / 2 / 1.75e9,
    "v6e": 918e12 / 1.75e9,
}
PASSES = {"forward": 2, "backward_q": 3, "backward_kv": 4}  # matrix products of each
HEADS, LENGTH, LISTED = 2, 8192, 32


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


def compiled(chip: str, mask: Any, heads: int, *, size: int = 128, backward: bool = False) -> Any:
    """Compiles attention, or its gradients, for one core of a chip."""
    mesh = Mesh(chips(chip)[:1], ("x",))
    x = jax.ShapeDtypeStruct((1, mask.q_len, heads, size), jnp.bfloat16)

    def run(q: Any, k: Any, v: Any, mask: BlockMask) -> Any:
        def values(*arrays: Any) -> Any:
            both: Any = attend(PallasTPU(), *arrays, mask, size**-0.5)
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


def loops(chip: str, block: int, size: int = 128) -> dict[str, Loop]:
    """Compiles in another process, because the compiler reads its options once."""
    with tempfile.TemporaryDirectory() as folder:
        options = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        command = [sys.executable, "-m", __spec__.name, "compile", chip, str(block), str(size)]
        subprocess.run(
            command,
            env={**os.environ, "LIBTPU_INIT_ARGS": options, "JAX_PLATFORMS": "cpu"},
            check=True,
            capture_output=True,
        )
        found = {}
        for name in PASSES:
            texts = [
                path.read_text(errors="replace")
                for path in Path(folder).glob("*final_bundles.txt")
                if f"attention_{name}_" in re.sub(r"[.-]", "_", path.name)
            ]
            if texts:
                found[name] = inner_loop(max(texts, key=len))
        return found


def busy(chip: str, block: int, name: str, loop: Loop, size: int = 128) -> float:
    """Returns the share of a step in which the matrix unit must work, at its peak."""
    least = LEAST_FORWARD if name == "forward" else LEAST_BACKWARD
    listed = LISTED * block if name != "backward_kv" else LENGTH
    tiles = Tiles.of(block, block, listed, least=least)
    flops = 2 * PASSES[name] * tiles.q * tiles.keys * tiles.parts * size
    return flops / FLOPS_PER_CYCLE[chip] / loop.plain


if __name__ == "__main__":
    if sys.argv[1] == "compile":
        chip, block, size = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
        compiled(chip, mask_like(HEADS, LENGTH, block, LISTED), HEADS, size=size, backward=True)
    else:
        chip, *blocks = sys.argv[1:]
        for block in map(int, blocks):
            for name, loop in loops(chip, block).items():
                share = busy(chip, block, name, loop)
                print(f"{chip} block {block:4} {name:12} {loop} {share:.0%}", flush=True)
