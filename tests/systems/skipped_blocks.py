"""Skip-softmax beside its ablations, on prompts that its limits were not calibrated with.

python -m tests.systems.skipped_blocks [WEIGHTS] [SIDE] [BLOCK]
python -m tests.systems.skipped_blocks wan-1.3b-720p

Calibrates at four times the tokens of half the side; prints for every density what was reached,
PSNR and SSIM to dense attention, of blocks in order of distance, of their number and of a draft, of
numbers fitted with other prompts and at half the side (limits are a scale over the tokens), and of
lists that are chosen before: a draft and random blocks.

With the shape of a published network: rows of `jvdm bench model`, whose numbers are fitted to one
call of the same network. A density of .7 is .6 of the blocks skipped.
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jvdm
from jvdm import bench
from jvdm.arrays import instances
from jvdm.attention import Dense, Draft, Random, SkipSearch, SkipSoftmax, summary
from jvdm.attention.skip_softmax import Skips, fitted
from jvdm.comparison import price, timed
from jvdm.models import stand_in
from jvdm.pattern_search import _added, grid_of, with_policy
from jvdm.pipeline import Request
from jvdm.policies import PROMPTS
from pallas_kernels.attention.shapes import SHAPES
from tests.systems.pattern_tables import OTHERS, UNSEEN

DENSITIES = (0.9, 0.75, 0.65, 0.55)
SAMPLED = 1 << 16  # queries: all of them


def measure(weights: str = "nano", side: int = 128, block: int = 4) -> None:
    """Prints the table."""
    pipe: Any = jvdm.load(weights, progress=False)

    def asked(prompts: Sequence[str], first: int, side: int = side) -> Request:
        seeds = tuple(range(first, first + len(prompts)))
        return Request(prompt=tuple(prompts), seed=seeds, height=side, width=side)

    def fit(request: Request, visits: str) -> tuple[float, float]:
        searching = SkipSearch(block=block, visits=visits)
        found = _added(pipe, request, searching, Skips)
        mean = np.asarray(found.skipped / found.calls[:, None, None])[1:].mean((0, 1))
        return fitted(mean, grid_of(pipe, request).tokens)

    base = SkipSoftmax(dense_layers=1, block=block, recall_queries=SAMPLED)
    near, number = (fit(asked(PROMPTS, 0), visits) for visits in ("near", "first"))
    alike: dict[str, Any] = {"dense_rows": 0.25, "dense_layers": 1, "block": block}
    named: dict[str, Any] = {
        "near": dataclasses.replace(base, fit=near),
        "by number": dataclasses.replace(base, fit=number, visits="first"),
        "a draft's order": dataclasses.replace(base, fit=near, visits="draft"),
        "other prompts": dataclasses.replace(base, fit=fit(asked(OTHERS, 100), "near")),
        "half the side": dataclasses.replace(base, fit=fit(asked(PROMPTS, 0, side // 2), "near")),
        "draft": Draft(**alike),
        "random": Random(**alike),
    }
    request = asked(UNSEEN, 1000)
    end, _ = timed(with_policy(pipe, Dense()), request)
    dense = jnp.asarray(pipe.decode(end.state.x))
    print("policy            asked   done  recall   PSNR    SSIM  fit")
    for density in DENSITIES:
        for name, policy in named.items():
            run = with_policy(pipe, dataclasses.replace(policy, density=density))
            end, _ = timed(run, request)
            scores = price(jnp.asarray(pipe.decode(end.state.x)), dense)
            done = summary(end.state.carry)
            # Of the sparse calls alone: rows and layers that are dense count 1.
            share = 1 - (1 - done["density"]) / (1 - done["dense_share"])
            told = f"{float(scores['psnr']):5.1f}  {float(scores['ssim']):6.3f}"
            line = f"{name:17} {density:5.2f}  {share:5.3f}  {done['recall']:6.3f}  {told}"
            print(line, getattr(policy, "fit", ""), flush=True)


def times(name: str, densities: Sequence[float] = (0.9, 0.8, 0.7)) -> None:
    """Prints rows of a network of a published shape."""
    shape, keys = SHAPES[name], jax.random.split(jax.random.key(0), 3)
    network: Any = stand_in.network(shape, SkipSearch())
    video = stand_in.moving_regions(keys[2], shape, stand_in.BEFORE)
    states = jax.random.normal(keys[1], (1, *stand_in.TEXT))
    carry = network.start(shape.grid[0], *stand_in.cells(shape))
    given = (stand_in.parameters(keys[0], shape), video, states, carry, stand_in.row(shape))
    (found,) = instances(stand_in.program(network)(*given)[1], Skips)
    policy = SkipSoftmax(fit=fitted(np.asarray(found.skipped)[1:].mean((0, 1)), shape.length))
    del given, carry, found  # rows make their own
    print(f"fit {policy.fit}", flush=True)
    variants: dict[Any, Any] = {("dense", 1.0): Dense()}
    for density in densities:
        some = dataclasses.replace(policy, density=density, dense_layers=1)
        variants["skip_softmax", density] = some
    for row in bench.rows_of_model({name: shape}, variants, 0):
        print(bench._told(row), flush=True)


if __name__ == "__main__" and sys.argv[1:2] and sys.argv[1] in SHAPES:
    times(sys.argv[1])
elif __name__ == "__main__":
    given = dict(zip(("weights", "side", "block"), sys.argv[1:], strict=False))
    sizes = {name: int(given[name]) for name in ("side", "block") if name in given}
    measure(given.get("weights", "nano"), **sizes)
