"""Blocks of the most attention: the best that lists of blocks can be, at more than dense cost."""

import dataclasses

import jax.numpy as jnp

from jvdm.attention.blocks import Blocks
from jvdm.attention.policy import AttentionCall
from jvdm.attention.sparse import Sparse
from pallas_kernels import block_mass, block_sparse_attention


@dataclasses.dataclass(frozen=True)
class Oracle(Sparse):
    """Each block of queries sees the blocks of keys that dense attention gives most mass to.

    No policy with as many blocks per row has a higher recall. An instrument, not a method:
    it computes the dense weights first.
    """

    def choose(self, q, k, v, call: AttentionCall, blocks: Blocks):
        """Marks the blocks of greatest mass."""
        everything = blocks.everything()
        lse = block_sparse_attention(q, k, v, everything, return_lse=True)[1]
        lse = jnp.where(blocks.holds[None, None], lse, -jnp.inf)
        mass = block_mass(q, k, lse, blocks.size, blocks.size, kv_lengths=everything.kv_lengths)
        return self.best(mass, call, blocks), self.listed(blocks)
