"""Sparse-vDiT beside its ablations, on prompts that its table was not searched with.

python -m tests.systems.pattern_tables [WEIGHTS] [HEIGHT] [BLOCK]

Searches a table, and another with other prompts; prints how many heads both give the same, and for
every density PSNR and SSIM to dense attention of the searched patterns, of the patterns of the
table given to heads at random (the same ones in every layer, so that the cost is equal), of the
paper's one size of patterns, and of one pattern for all heads; and likewise of windows that slide,
searched for every head and the same for all (sliding tile attention).
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

import jvdm
from jvdm.attention import Dense, Draft, Random, SparseVDiT, TokenGrid, blocks_of, summary
from jvdm.attention.patterns import PATTERNS, WINDOWS, PatternTable
from jvdm.comparison import price, timed
from jvdm.pattern_search import search, with_policy
from jvdm.pipeline import Request
from jvdm.policies import PROMPTS

OTHERS = ("a small purple box falls", "a large green can rests")
UNSEEN = (
    "a small yellow ball falls",
    "a large blue can slides to the left",
    "a large green box rolls to the right",
    "a small red can rests",
)
SIZES = (0.5, 0.25, 0.1)
DENSITIES = (0.75, 0.5, 0.35, 0.25)


def shuffled(table: PatternTable, seed: int) -> PatternTable:
    """Returns the table whose heads have changed places within their layers."""
    draws, found = np.random.default_rng(seed), dataclasses.replace(table)
    orders = [draws.permutation(table.errors.shape[1]) for _ in table.errors]
    errors = np.stack([errors[order] for errors, order in zip(table.errors, orders, strict=True)])
    return dataclasses.replace(found, errors=errors)


def measure(weights: str = "nano", height: int = 128, block: int = 4) -> None:
    """Prints the table."""
    pipe: Any = jvdm.load(weights, progress=False)
    size: dict[str, Any] = {"height": height, "width": height}

    def asked(prompts: Sequence[str], first: int) -> Request:
        return Request(
            prompt=tuple(prompts), seed=tuple(range(first, first + len(prompts))), **size
        )

    seen, other = (
        search(pipe, asked(prompts, first), SIZES, block, "blocks")
        for prompts, first in ((PROMPTS, 0), (OTHERS, 100))
    )
    single = search(pipe, asked(PROMPTS, 0), (0.25,), block, "blocks")
    blocks = blocks_of(TokenGrid(*seen.grid, 1, seen.errors.shape[1]), seen.block)
    for density in DENSITIES:
        one, two = (table.chosen(density, blocks, 1) for table in (seen, other))
        print(f"density {density}: {(one == two)[1:].mean():.2f} of heads agree")
    base = SparseVDiT(block=block)
    kinds = {"searched": seen, "of other prompts": other, "one size": single}
    kinds |= {f"shuffled {seed}": shuffled(seen, seed) for seed in range(3)}
    boxes = search(pipe, asked(PROMPTS, 0), SIZES, block, "blocks", WINDOWS)
    kinds |= {"windows": boxes, "windows shuffled": shuffled(boxes, 0)}
    named: dict[str, Any] = {
        name: dataclasses.replace(base, table=table.text()) for name, table in kinds.items()
    }
    named |= {
        f"all {kind}": dataclasses.replace(base, pattern=kind) for kind in (*PATTERNS, *WINDOWS)
    }
    alike: dict[str, Any] = {"dense_rows": 0.25, "dense_layers": 1, "block": block}
    named |= {"random": Random(**alike), "draft": Draft(**alike)}
    request = asked(UNSEEN, 1000)
    end, _ = timed(with_policy(pipe, Dense()), request)
    dense = jnp.asarray(pipe.decode(end.state.x))
    print("policy             asked   done   PSNR    SSIM")
    for density in DENSITIES:
        for name, policy in named.items():
            try:
                run = with_policy(pipe, dataclasses.replace(policy, density=density))
                end, _ = timed(run, request)
            except jvdm.ConfigError as error:
                print(f"{name:18} {density:5.2f}  {error.why}")
                continue
            near = price(jnp.asarray(pipe.decode(end.state.x)), dense)
            done = summary(end.state.carry)["density"]
            psnr, ssim = float(near["psnr"]), float(near["ssim"])
            print(f"{name:18} {density:5.2f}  {done:5.3f}  {psnr:5.1f}  {ssim:6.3f}", flush=True)


if __name__ == "__main__":
    given = dict(zip(("weights", "height", "block"), sys.argv[1:], strict=False))
    measure(given.get("weights", "nano"), int(given.get("height", 128)), int(given.get("block", 4)))
