"""Chooses the tile sizes of the kernels for a device, and writes them into the tables.

On an H100 or H200 every choice is timed; for TPUs the compiler's schedule is read, for which no
TPU is needed but the wheel libtpu:

    python -m pallas_kernels.attention.tune
    python -m pallas_kernels.attention.tune --chips v5e v6e

`--table FILE` writes a copy, which serves where `PALLAS_KERNELS_TILES` names it; `jvdm bench tune`
does so too, and never writes into the package.
"""

import argparse
import concurrent.futures
import functools
import importlib.util
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.attention import tables
from pallas_kernels.attention.bench import seconds
from pallas_kernels.attention.mosaic_gpu import MosaicGPU
from pallas_kernels.attention.mosaic_gpu.sizes import BackwardSizes, ForwardSizes, rows_of
from pallas_kernels.attention.pallas_tpu import schedule
from pallas_kernels.attention.pallas_tpu.tiles import WHOLE, Limits
from pallas_kernels.block_mask import BlockMask

LISTED = 8192  # keys of a list on TPUs: .1 of those of a video at 720p
TPU_BLOCKS = (128, 256, 512)
GPU_BLOCKS = tuple(itertools.product((128, 64, 192), (128, 64)))
GPU_SIZES = (128, 64)
HEADS, DENSITY = 12, 0.25

Row = tuple[str, str, Any, float]  # pass, blocks, sizes, cost


def tpu_choices(block: int) -> list[Limits]:
    """Returns what a step may compute, for blocks of a size; at most two million pairs."""
    queries = min(block, WHOLE)
    shapes = itertools.product((512, 1024), (1, 2, 4))
    return [Limits(WHOLE, *shape) for shape in shapes if queries * shape[0] * shape[1] < 2**20]


def tpu(chip: str, blocks: tuple[int, ...] = TPU_BLOCKS) -> Iterator[Row]:
    """Yields the cost of every choice on a chip: of a pair that counts, in cycles of a core.

    A step takes as long as its instructions, or as its matrix products if these take longer. A
    list is walked in whole steps, so that half a step, less half a block, is computed in vain.
    """
    for block in blocks:
        choices = tpu_choices(block)
        for limits, loops in zip(choices, schedule.loops(chip, block, choices), strict=True):
            wasted = max(limits.keys * limits.parts - block, 0) / 2 / LISTED
            for part, loop in loops.items():
                busy = min(schedule.busy(chip, block, part, loop, limits), 1.0)
                ideal = 2 * schedule.PASSES[part] * 128 / schedule.FLOPS_PER_CYCLE[chip]
                yield part, str(block), limits, ideal / busy * (1 + wasted)


def gpu(
    sizes_of_heads: Sequence[int] = GPU_SIZES,
    blocks_of: Sequence[tuple[int, int]] = GPU_BLOCKS,
    length: int = 16_384,
) -> Iterator[Row]:
    """Yields the seconds of every choice on this device, a quarter of all blocks listed."""
    for size, (block_q, block_kv) in itertools.product(sizes_of_heads, blocks_of):
        if rows_of(block_q, size) != block_q:  # which smaller ones serve
            continue
        mask = _listed(length, block_q, block_kv)
        keys = jax.random.split(jax.random.key(0), 4)
        shape = (1, length, HEADS, size)
        q, k, v, d_out = (jax.random.normal(key, shape, jnp.bfloat16) for key in keys)
        calls = {
            sizes: functools.partial(MosaicGPU(forward_sizes=sizes).forward, scale=0.1)
            for sizes in ForwardSizes.possible(block_q, block_kv, size)
        }
        for sizes, time in timed(calls, q, k, v, mask):
            yield "forward", f"{block_q}x{block_kv}x{size}", sizes, time
        if block_q != 128:  # the backward pass takes 64 queries at a time, whatever the block
            continue
        _, lse = jax.jit(functools.partial(MosaicGPU().forward, scale=0.1))(q, k, v, mask)
        delta = jnp.zeros_like(lse)
        calls = {
            sizes: functools.partial(MosaicGPU(backward_sizes=sizes).backward, scale=0.1)
            for sizes in BackwardSizes.possible(block_kv, size)
        }
        inputs = {"lse": lse, "d_out": d_out, "delta": delta}
        for sizes, time in timed(calls, q, k, v, mask, **inputs):
            yield "backward", f"{block_kv}x{size}", sizes, time


def timed(
    calls: Mapping[Any, Callable[..., Any]], *inputs: Any, **named: Any
) -> Iterator[tuple[Any, float]]:
    """Yields the seconds of each call, the least of two rounds: a device slows down as it warms.

    All are compiled first, side by side.
    """
    lowered = [jax.jit(call).lower(*inputs, **named) for call in calls.values()]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        programs = list(pool.map(lambda one: one.compile(), lowered))
    rounds = [
        [seconds(functools.partial(program, **named), *inputs) for program in programs]
        for _ in range(2)
    ]
    yield from zip(calls, map(min, *rounds), strict=True)


def _listed(length: int, block_q: int, block_kv: int) -> BlockMask:
    """Returns random lists of equal length, of blocks that need not be square."""
    sizes: dict[str, Any] = {"block_q": block_q, "block_kv": block_kv}
    shape = (1, HEADS, -(-length // block_q), -(-length // block_kv))
    scores = jax.random.uniform(jax.random.key(1), shape)
    count = round(DENSITY * shape[3])
    return BlockMask.from_top(scores, count=count, q_len=length, kv_len=length, **sizes)


def chosen(found: list[Row]) -> dict[str, dict[str, Any]]:
    """Returns the cheapest choice for each pass and blocks, as the tables have it."""
    least: dict[tuple[str, str], Row] = {}
    for row in found:
        best = least.setdefault(row[:2], row)
        least[row[:2]] = min(best, row, key=lambda row: row[3])
    cheapest: dict[str, dict[str, Any]] = {}
    for part, blocks, sizes, _ in least.values():
        cheapest.setdefault(part, {})[blocks] = sizes._asdict()
    return cheapest


def refusal(chips: Sequence[str]) -> str:
    """Returns why nothing can be chosen for chips, or for this device; empty if it can."""
    if chips:
        lacks = importlib.util.find_spec("libtpu") is None
        return "the schedule for a TPU is made by libtpu, which is not installed" if lacks else ""
    return MosaicGPU().refusal_of_device()


def rows(
    chips: Sequence[str], table: Path, command: str, *, quick: bool = False
) -> Iterator[dict[str, Any]]:
    """Yields the cost of every choice, and writes the cheapest of a device once all are known.

    Args:
        chips: TPUs whose schedule is read; none means that this device is timed.
        table: File of tables, as `tables.write` takes it.
        command: How they were found, for the table.
        quick: On a GPU only square blocks and heads of 128; the others stay as they are.

    Yields:
        `device`, `pass`, `blocks`, `sizes` and `cost`: seconds, or cycles of a pair that counts.

    Raises:
        ValueError: If no choice for a device could be compiled.
    """
    kernel = "pallas_tpu" if chips else "mosaic_gpu"
    for device in chips or [jax.devices()[0].device_kind]:
        timed, found = gpu((128,), ((128, 128), (64, 64))) if quick else gpu(), []
        for row in tpu(device) if chips else timed:
            found.append(row)
            part, blocks, sizes, cost = row
            told = {"blocks": blocks, "sizes": sizes._asdict(), "cost": cost}
            yield {"device": device, "pass": part, **told}
        if not found:
            raise ValueError(f"no choice for {device} was compiled, or its schedule not written")
        best = {"from": f"{command}, jax {jax.__version__}", **chosen(found)}
        tables.write(table, kernel, device, best)


def told(row: Mapping[str, Any]) -> str:
    """Returns a row as a line."""
    sizes = ", ".join(f"{name}={size}" for name, size in row["sizes"].items())
    return f"{row['device']} {row['pass']:12} {row['blocks']:11} {row['cost']:<10.4g} {sizes}"


def main() -> None:
    """Prints the cost of every choice, and writes the best ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chips", nargs="+", choices=list(schedule.TOPOLOGIES), default=[])
    parser.add_argument("--table", type=Path, default=tables.path(), help="file to write to")
    only = "only square blocks and heads of 128 on a GPU; the others stay as they are"
    parser.add_argument("--quick", action="store_true", help=only)
    options = parser.parse_args()
    refused = refusal(options.chips)
    if refused:
        parser.error(
            f"{refused}; {'pip install libtpu' if options.chips else '--chips names TPUs'}"
        )
    command = f"python -m {__spec__.name} {' '.join(sys.argv[1:])}".strip()
    for row in rows(options.chips, options.table, command, quick=options.quick):
        print(told(row), flush=True)
    print(f"the cheapest of each are in {options.table}")


if __name__ == "__main__":
    main()
