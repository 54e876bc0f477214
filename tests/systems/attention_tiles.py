"""Efficient-vDiT beside its ablations, on prompts that references were not searched with.

python -m tests.systems.attention_tiles [WEIGHTS] [SIDE]

Searches the references of every layer; prints for every density PSNR and SSIM to dense attention
of what was searched, of one number for all layers, of the numbers searched in other layers, and of
random blocks, windows and a draft.
"""

import sys
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

import jvdm
from jvdm.attention import AttentionTile, Dense, Draft, Random, Window, summary
from jvdm.comparison import price, timed
from jvdm.errors import JvdmError
from jvdm.pattern_search import search_references, with_policy
from jvdm.pipeline import Request
from jvdm.policies import PROMPTS
from tests.systems.pattern_tables import UNSEEN

DENSITIES = (0.75, 0.6, 0.45)


def measure(weights: str = "nano", side: int = 64, block: int = 4, frames: int = 33) -> None:
    """Prints the table."""
    pipe: Any = jvdm.load(weights, progress=False)
    size: dict[str, Any] = {"height": side, "width": side, "num_frames": frames}

    def asked(prompts: Sequence[str], first: int) -> Request:
        seeds = tuple(range(first, first + len(prompts)))
        return Request(prompt=tuple(prompts), seed=seeds, **size)

    found = search_references(pipe, asked(PROMPTS, 0), DENSITIES, block, 0)["references"]
    other = search_references(pipe, asked(UNSEEN, 100), DENSITIES, block, 0)["references"]
    request = asked(UNSEEN, 1000)
    end, _ = timed(with_policy(pipe, Dense()), request)
    dense = jnp.asarray(pipe.decode(end.state.x))
    print("policy            asked   done   PSNR    SSIM  references")
    for density in DENSITIES:
        mine = found[f"{density:g}"]
        alike: dict[str, Any] = {"density": density, "dense_rows": 0.25, "block": block}
        named = {
            "searched": AttentionTile(references=mine, **alike),
            "of other prompts": AttentionTile(references=other[f"{density:g}"], **alike),
            "layers reversed": AttentionTile(references=mine[::-1], **alike),
            "one number": AttentionTile(**alike),
            **{"random": Random(**alike), "window": Window(**alike), "draft": Draft(**alike)},
        }
        for name, policy in named.items():
            try:
                end, _ = timed(with_policy(pipe, policy), request)
            except JvdmError as error:
                print(f"{name:17} {density:5.2f}  {error}")
                continue
            near = price(jnp.asarray(pipe.decode(end.state.x)), dense)
            done = summary(end.state.carry)["density"]
            told = getattr(policy, "references", ())
            scores = f"{float(near['psnr']):5.1f}  {float(near['ssim']):6.3f}"
            print(f"{name:17} {density:5.2f}  {done:5.3f}  {scores}  {told}", flush=True)


if __name__ == "__main__":
    given = dict(zip(("weights", "side"), sys.argv[1:], strict=False))
    measure(given.get("weights", "nano"), int(given.get("side", 64)))
