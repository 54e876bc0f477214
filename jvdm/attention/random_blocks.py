"""Blocks at random: what every policy that looks at something must beat."""

import dataclasses

import jax
import jax.numpy as jnp

from jvdm.attention.blocks import Blocks
from jvdm.attention.policy import AttentionCall
from jvdm.attention.sparse import Sparse


@dataclasses.dataclass(frozen=True)
class Random(Sparse):
    """Each block of queries sees itself and random others, new ones in every row and layer."""

    seed: int = 0
    """Of the draws; the same blocks for every video of a batch."""

    def choose(self, q, k, v, call: AttentionCall, blocks: Blocks):
        """Marks the block itself, and the highest of uniform draws."""
        key = jax.random.fold_in(jax.random.key(self.seed), call.row.index)
        key = jax.random.fold_in(key, call.layer)
        scores = jax.random.uniform(key, (1, q.shape[2], blocks.count, blocks.count))
        marked = self.best(scores + jnp.eye(blocks.count)[None, None], call, blocks)
        return marked, self.listed(blocks)
