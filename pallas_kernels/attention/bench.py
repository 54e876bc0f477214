"""Times block-sparse attention beside dense attention, in one run on one device.

`python -m pallas_kernels.attention.bench --lengths 75776 --blocks 128 64 --densities .5 .25 .1`
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pallas_kernels.attention.api import block_sparse_attention, dense_attention, explain
from pallas_kernels.block_mask import BlockMask, best_blocks


def seconds(
    call: Callable[..., Any], *inputs: Any, loop_s: float = 0.06, repeats: int = 5
) -> float:
    """Returns the median time of a call, in loops long enough to hide how it is started."""
    jax.block_until_ready(call(*inputs))  # compiled
    began = time.perf_counter()
    jax.block_until_ready(call(*inputs))
    count = max(1, int(loop_s / (time.perf_counter() - began)))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(count):
            result = call(*inputs)
        jax.block_until_ready(result)
        times.append((time.perf_counter() - began) / count)
    return statistics.median(times)


def random_mask(heads: int, length: int, block: int, density: float, widest: float) -> BlockMask:
    """Returns a mask of random lists of equal length.

    Args:
        heads: Heads of the queries.
        length: Queries, and keys.
        block: Tokens of a block.
        density: Share of the blocks that are listed, in (0, 1].
        widest: The highest density for which the program serves.
    """
    blocks = -(-length // block)
    count, width = (max(1, round(share * blocks)) for share in (density, widest))
    draws = jax.random.uniform(jax.random.key(0), (1, heads, blocks, blocks))
    return BlockMask.from_dense(
        best_blocks(draws, count),
        max_blocks=width,
        block_q=block,
        block_kv=block,
        q_len=length,
        kv_len=length,
    )


def measure(
    length: int, block: int, densities: list[float], heads: int = 12, size: int = 128
) -> list[dict[str, Any]]:
    """Times both passes of one length and block, at each density, beside dense attention.

    Returns:
        A row per density, `dense` first: seconds of the forward pass and of both passes, and the
        rate of the operations of listed blocks, in TFLOP/s (both passes count 3.5 times forward).
    """
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    keys = jax.random.split(jax.random.key(1), 4)
    q, k, v, d_out = (jax.random.normal(x, (1, length, heads, size), dtype) for x in keys)

    def row(name: str, programs: tuple[Any, Any], share: Any, *mask: BlockMask) -> dict[str, Any]:
        forward, both = programs
        work = 4e-12 * heads * length**2 * size * float(share)
        forward_s, both_s = seconds(forward, q, k, v, *mask), seconds(both, q, k, v, d_out, *mask)
        found = {"attention": name, "length": length, "block": block}
        found |= {"forward_s": forward_s, "forward_tflops": work / forward_s}
        return found | {"both_s": both_s, "both_tflops": 3.5 * work / both_s}

    sparse = passes(block_sparse_attention)
    rows = [row("dense", passes(dense_attention), 1)]
    for density in densities:
        mask = random_mask(heads, length, block, density, max(densities))
        name = f"{explain(q, k, mask).implementation} {density:g}"
        rows.append(row(name, sparse, mask.density, mask))
    return rows


def passes(attend: Callable[..., Array]) -> tuple[Any, Any]:
    """Returns the programs of the forward pass and of both."""

    def both(q: Array, k: Array, v: Array, d_out: Array, *mask: BlockMask) -> Any:
        return jax.vjp(lambda q, k, v: attend(q, k, v, *mask), q, k, v)[1](d_out)

    return jax.jit(attend), jax.jit(both)


def main() -> None:
    """Prints the table, and writes it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096])
    parser.add_argument("--blocks", type=int, nargs="+", default=[128])
    parser.add_argument("--densities", type=float, nargs="+", default=[0.5, 0.25, 0.1, 0.05])
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--size", type=int, default=128, help="size of a head")
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    options = parser.parse_args()
    if not all(0 < density <= 1 for density in options.densities):
        parser.error(f"densities {options.densities}: each must be in (0, 1]")
    device = jax.devices()[0]
    print(f"{device.device_kind}, jax {jax.__version__}, {options.heads} heads of {options.size}")
    print(f"{'attention':18} {'length':>7} {'block':>5} {'forward':>24} {'both passes':>24}")
    found = []
    for length in options.lengths:
        for block in options.blocks:
            rows = measure(length, block, options.densities, options.heads, options.size)
            for row in rows:
                times = (
                    f"{1e3 * row[f'{name}_s']:9.2f} ms {row[f'{name}_tflops']:4.0f} TFLOP/s"
                    for name in ("forward", "both")
                )
                print(f"{row['attention']:18} {length:7} {block:5} {' '.join(times)}", flush=True)
            found += rows
    if options.json:
        options.json.write_text(json.dumps({"device": device.device_kind, "rows": found}, indent=1))


if __name__ == "__main__":
    main()
