"""Times block-sparse attention beside dense attention and its peers, in one run on one device.

`python -m pallas_kernels.attention.bench --shapes wan-1.3b-720p --blocks 128 64 --json a.json`
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pallas_kernels.attention.api import (
    block_sparse_attention,
    dense_attention,
    explain,
    refusal,
)
from pallas_kernels.attention.peers import PEERS, missing
from pallas_kernels.attention.plot import speedups
from pallas_kernels.attention.shapes import SHAPES, Shape
from pallas_kernels.block_mask import BlockMask, best_blocks

DENSITIES = (0.5, 0.25, 0.2, 0.1, 0.05, 0.02)
BLOCKS = (128, 64)
PASSES = {"forward": 1.0, "both": 3.5}  # operations of the passes; the backward one has 2.5 times


def seconds(
    call: Callable[..., Any],
    *inputs: Any,
    loop_s: float = 0.06,
    repeats: int = 5,
    wait: Callable[[Any], Any] = jax.block_until_ready,
) -> float:
    """Returns the median time of a call, in loops long enough to hide how it is started."""
    wait(call(*inputs))  # compiled
    began = time.perf_counter()
    wait(call(*inputs))
    count = max(1, int(loop_s / (time.perf_counter() - began)))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(count):
            result = call(*inputs)
        wait(result)
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


def near_mask(heads: int, length: int, block: int, density: float, widest: float) -> BlockMask:
    """Returns a mask of lists of the blocks around each, shorter at the ends of the sequence.

    Its arguments are those of `random_mask`; one program serves all densities.
    """
    place = np.arange(-(-length // block))
    reach = round(density * len(place) / 2)
    listed = np.abs(place[:, None] - place[None]) <= reach
    sizes: dict[str, Any] = {"block_q": block, "block_kv": block, "q_len": length, "kv_len": length}
    return BlockMask.from_dense(np.broadcast_to(listed, (1, heads, *listed.shape)), **sizes)


def measure(
    shape: Shape,
    block: int,
    densities: Sequence[float],
    peers: Iterable[str] = (),
    lists: Callable[..., BlockMask] = random_mask,
) -> Iterator[dict[str, Any]]:
    """Times both passes of one shape and block, at each density, beside dense attention.

    Yields:
        A row per attention and density, dense attention first, then ours with full lists:
        `density` that was listed, seconds of the forward pass and of both passes, and the rate
        of the operations of listed blocks, in TFLOP/s (both passes count 3.5 times forward).
    """
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    keys = jax.random.split(jax.random.key(1), 4)
    sizes = (1, shape.length, shape.heads, shape.size)
    q, k, v, d_out = inputs = tuple(jax.random.normal(x, sizes, dtype) for x in keys)

    def row(name: str, share: float, times: tuple[float, ...]) -> dict[str, Any]:
        work = 4e-12 * shape.heads * shape.length**2 * shape.size * share
        found: dict[str, Any] = {"attention": name, "length": shape.length, "block": block}
        found["density"] = share
        for (part, factor), time_s in zip(PASSES.items(), times, strict=True):
            found |= {f"{part}_s": time_s, f"{part}_tflops": factor * work / time_s}
        return found

    def timed(programs: tuple[Any, Any], *mask: BlockMask) -> tuple[float, float]:
        return seconds(programs[0], q, k, v, *mask), seconds(programs[1], *inputs, *mask)

    yield row(f"dense {'xla' if refusal(q) else 'cudnn'}", 1.0, timed(passes(dense_attention)))
    sparse, peers = passes(block_sparse_attention), tuple(peers)
    parts = [density for density in densities if density < 1]
    for density in (1.0, *parts):
        widest = 1.0 if density == 1 else max(parts)
        lister = random_mask if density == 1 else lists
        mask = lister(shape.heads, shape.length, block, density, widest)
        share = float(mask.density)
        yield row(explain(q, k, mask).implementation, share, timed(sparse, mask))
        for name in peers:
            if PEERS[name].sparse or density == 1:
                times = _peer_times(name, inputs, mask)
                if times:
                    yield row(name, share, times)


def _peer_times(name: str, inputs: tuple[Array, ...], mask: BlockMask) -> tuple[float, ...]:
    """Returns the seconds of a peer's passes; nothing where it cannot serve the call, and why."""
    try:
        calls, wait = PEERS[name].calls(inputs, mask)
        return tuple(seconds(call, wait=wait) for call in calls)
    except Exception as error:  # other libraries have many
        why = next((line for line in str(error).splitlines() if "Error" in line), str(error))
        print(f"without {name} at blocks of {mask.block_q}: {why.strip()[:200]}", file=sys.stderr)
        return ()


def passes(attend: Callable[..., Array]) -> tuple[Any, Any]:
    """Returns the programs of the forward pass and of both."""

    def both(q: Array, k: Array, v: Array, d_out: Array, *mask: BlockMask) -> Any:
        return jax.vjp(lambda q, k, v: attend(q, k, v, *mask), q, k, v)[1](d_out)

    return jax.jit(attend), jax.jit(both)


def rows(
    shapes: Mapping[str, Shape],
    blocks: Sequence[int] = BLOCKS,
    densities: Sequence[float] = DENSITIES,
    lists: Callable[..., BlockMask] = random_mask,
) -> Iterator[dict[str, Any]]:
    """Measures all shapes, blocks and densities on the default device.

    Args:
        shapes: Shapes by name.
        blocks: Tokens of a block.
        densities: Shares of the blocks that are listed, in (0, 1].
        lists: Makes the lists, as `random_mask` or `near_mask`.

    Yields:
        The rows of `measure`, with the name of the `shape`.
    """
    peers = [name for name in PEERS if not missing(name)]
    for name, shape in shapes.items():
        for block in blocks:
            for row in measure(shape, block, densities, peers, lists):
                yield {"shape": name, **row}


def told(row: Mapping[str, Any] | None = None) -> str:
    """Returns a row as a line of the table; its head for None."""
    if row is None:
        head = f"{'shape':15} block {'attention':15} density {'forward':>25}"
        return f"{head} {'both passes':>25}"
    times = (f"{1e3 * row[f'{x}_s']:9.2f} ms {row[f'{x}_tflops']:5.3g} TFLOP/s" for x in PASSES)
    start = f"{row['shape']:15} {row['block']:5} {row['attention']:15} {row['density']:7.3f}"
    return f"{start} {'  '.join(times)}"


def main() -> None:
    """Prints the table, and writes it as JSON and as a picture where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", choices=list(SHAPES), nargs="+", default=[])
    parser.add_argument("--lengths", type=int, nargs="+", default=[], help="other sequences")
    parser.add_argument("--heads", type=int, default=12, help="of other sequences")
    parser.add_argument("--size", type=int, default=128, help="of a head of other sequences")
    parser.add_argument("--blocks", type=int, nargs="+", default=BLOCKS)
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES)
    parser.add_argument("--near", action="store_true", help="list neighbours, not random blocks")
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    parser.add_argument("--plot", type=Path, help="file to draw the speedups to, an .svg")
    options = parser.parse_args()
    if not all(0 < density <= 1 for density in options.densities):
        parser.error(f"densities {list(options.densities)}: each must be in (0, 1]")
    lengths = options.lengths or ([] if options.shapes else [4096])
    shapes = {name: SHAPES[name] for name in options.shapes}
    shapes |= {str(n): Shape((1, 1, n), options.heads, options.size, 1) for n in lengths}
    device, absent = jax.devices()[0].device_kind, {name: missing(name) for name in PEERS}
    print(f"{device}, jax {jax.__version__}, one batch row, {dict(shapes)}")
    print(*(f"without {name}: {why}" for name, why in absent.items() if why), told(), sep="\n")
    result: dict[str, Any] = {"device": device, "jax": jax.__version__, "missing": absent}
    result["rows"] = []
    lists = near_mask if options.near else random_mask
    for row in rows(shapes, options.blocks, options.densities, lists):
        result["rows"].append(row)
        print(told(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    if options.plot:
        options.plot.write_text(speedups(result))


if __name__ == "__main__":
    main()
