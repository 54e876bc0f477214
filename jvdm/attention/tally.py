"""What sparse attention really did in a run: density, recall and dense calls, layer by layer."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float, PyTree, instances
from jvdm.attention.blocks import Blocks
from pallas_kernels import BlockMask


class Tally(NamedTuple):
    """Sums over the calls of one layer; carried through the scans, read once on the host.

    Attributes:
        calls: f32[], calls of the layer.
        density: f32[], share of all pairs of tokens that were computed.
        recall: f32[], share of the attention mass that lay on them; see `recall`.
        dense: f32[], calls that were dense.
    """

    calls: Float[Array, ""]
    density: Float[Array, ""]
    recall: Float[Array, ""]
    dense: Float[Array, ""]

    @classmethod
    def empty(cls) -> "Tally":
        """Returns the tally before the first call."""
        return cls(*(jnp.zeros(()) for _ in cls._fields))

    def add(self, density: Array | float, recall: Array | float, dense: bool) -> "Tally":
        """Returns the tally after another call."""
        return Tally(
            self.calls + 1, self.density + density, self.recall + recall, self.dense + dense
        )


def density(blocks: Blocks, mask: BlockMask) -> Float[Array, ""]:
    """Returns the share of all pairs of tokens, padding left out, that a mask lists."""
    share = jnp.asarray(blocks.lengths / blocks.grid.tokens, jnp.float32)
    entry = np.arange(mask.kv_indices.shape[3])[None, None, None]
    said = jnp.where(entry < mask.kv_counts[..., None], share[mask.kv_indices], 0.0)
    return jnp.mean(jnp.sum(said, -1) @ share)


def recall(
    q: Float[Array, "B L N D"],
    k: Float[Array, "B L N D"],
    blocks: Blocks,
    mask: BlockMask,
    queries: int,
) -> Float[Array, ""]:
    """Estimates the share of dense attention that lies on the listed blocks.

    From `queries` queries, drawn once for all layers and rows; their dense attention, summed over
    every block of keys, costs `queries / (2 L)` of the products of all. The mean over them, heads
    and batch rows is unbiased.
    """
    held = np.flatnonzero(blocks.holds)
    count = min(queries, len(held))
    chosen = np.sort(np.random.default_rng(0).choice(held, count, replace=False))
    scores = jnp.einsum("bqnd,blnd->bnql", q[:, chosen], k, preferred_element_type=jnp.float32)
    scores = jnp.where(blocks.holds[None, None, None], scores * q.shape[3] ** -0.5, -jnp.inf)
    weights = jax.nn.softmax(scores, -1).reshape(*scores.shape[:3], blocks.count, blocks.size)
    rows, lists = chosen // blocks.size, {"kv_full_counts": None}
    for name in ("kv_indices", "kv_counts"):
        lists[name] = getattr(mask, name)[:, :, rows]
    listed = dataclasses.replace(mask, **lists).to_dense()
    return jnp.mean(jnp.sum(jnp.where(listed, weights.sum(-1), 0.0), -1))


def summary(carry: PyTree) -> dict[str, Any]:
    """Returns what the tallies in the carry of a run say, as JSON data; empty without any.

    Returns:
        `density`, `recall` (None where it was not estimated) and `dense_share` of the calls, as
        means over calls and layers, and the first two layer by layer (`layers`). All branches
        of guidance count.
    """
    found = instances(carry, Tally)
    if not found:
        return {}
    total = Tally(
        *(np.sum([np.asarray(part) for part in parts], 0) for parts in zip(*found, strict=True))
    )
    calls = np.maximum(total.calls, 1)
    kept, seen, dense = (part / calls for part in (total.density, total.recall, total.dense))
    known = bool(np.isfinite(seen).all())
    return {
        "density": round(float(kept.mean()), 4),
        "recall": round(float(seen.mean()), 4) if known else None,
        "dense_share": round(float(dense.mean()), 4),
        "layers": {
            "density": [round(float(x), 4) for x in kept],
            "recall": [round(float(x), 4) for x in seen] if known else None,
        },
    }
