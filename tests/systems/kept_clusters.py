"""SVG2's searches: what clusters that serve several rows cost, and what they save.

python -m tests.systems.kept_clusters nano
python -m tests.systems.kept_clusters wan-1.3b-720p .2

With shipped weights: for searches that serve 1 to 16 rows, the mean recall of 50 rows, dense ones
counted, and the PSNR of clips at density .25 and four times their tokens to those of dense
attention, mean and one by one. With the shape of a published network:
seconds of a row that searches and of one that does not, and the share of attention that choosing
and listing blocks takes in each, tokens being put in order included.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvdm import bench
from jvdm.attention import SVG2, Dense
from jvdm.fidelity import psnr
from jvdm.models import stand_in
from pallas_kernels.attention.bench import seconds
from pallas_kernels.attention.shapes import SHAPES
from tests.systems.kept_lists import asked, made
from tests.systems.pattern_tables import UNSEEN

EVERY = (1, 2, 4, 8, 16)


def nearness(weights: str) -> None:
    """Prints recall and PSNR for each number of rows."""
    pipe, request, rules = asked(weights, side=128, block=4, steps=50, clips=len(UNSEEN))
    dense = made(pipe, Dense(), request)[1]
    for every in EVERY:
        rows, clips = made(pipe, SVG2(0.25, every=every, **rules), request)
        recalled = sum(row["recall"] for row in rows) / len(rows)
        near = np.asarray(psnr(*(x.astype(jnp.float32) / 255 for x in (clips, dense))))
        print(
            f"{every:2}  {recalled:.3f}  {near.mean():.1f}  {[round(x, 1) for x in near.tolist()]}",
            flush=True,
        )


def times(name: str, density: float) -> None:
    """Prints the times of rows and the shares of choosing blocks."""
    shape, keys = SHAPES[name], jax.random.split(jax.random.key(0), 3)
    params, policy = stand_in.parameters(keys[0], shape), SVG2(density, every=EVERY[-1])
    states = jax.random.normal(keys[1], (1, *stand_in.TEXT))
    before, video = (
        stand_in.moving_regions(keys[2], shape, level)
        for level in (stand_in.BEFORE, stand_in.LEVEL)
    )
    network: Any = stand_in.network(shape, policy)
    first = stand_in.program(network.clone(policy=policy.in_phase("first")))
    carry = network.start(shape.grid[0], *stand_in.cells(shape))
    carry = first(params, before, states, carry, stand_in.row(shape))[1]
    forward, given = stand_in.program(network), (params, video, states, carry)
    parts = bench.plan_parts(shape, policy)
    parts = stand_in.compiled(parts, *given, stand_in.row(shape))
    for what, index in (("searches", 2 * policy.every), ("keeps", 2 * policy.every + 1)):
        row = stand_in.row(shape, index)
        spent = seconds(forward, *given, row)
        print(what, spent, bench.plan_share(shape, policy, parts, given, row), flush=True)


if __name__ == "__main__":
    if sys.argv[1] in SHAPES:
        times(sys.argv[1], float(sys.argv[2]))
    else:
        nearness(sys.argv[1])
