"""Video sparse attention: means of blocks choose what tokens attend to, and are attended to too."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from jvdm.arrays import Array, Float
from jvdm.attention.blocks import Blocks, blocks_of
from jvdm.attention.draft import Draft
from jvdm.attention.policy import Among, AttentionCall
from jvdm.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class VSA(Draft):
    """Attention to the best blocks, plus a learned share of attention among means of blocks.

    `out = fine + gate * coarse`: `fine` is softmax attention among the listed blocks, `coarse` the
    attention of the mean query of a block to the means of all keys and values, the same for all of
    its tokens, and `gate` a linear port of the layer, per token and feature. The port starts at
    zero, so that a network that gets it is what it was; weights without one are used without the
    coarse branch. Gradients of `fine` go through its lists, and queries and keys of blocks that are
    not listed learn through `coarse` alone, since a choice has no gradient.

    What is ours: patches of one frame, where theirs are cubes of 4 x 4 x 4 tokens that mix frames,
    because frames have their own levels; short patches at the border count by their tokens, theirs
    as much as whole ones.

    Reference: VSA, Zhang et al., arXiv:2505.13389, section 3.
    """

    gated: ClassVar[bool] = True

    density: float = 0.125
    dense_rows: float = 0.0
    dense_layers: int = 0

    def __post_init__(self) -> None:
        """Raises `ConfigError` for a field that is out of range."""
        super().__post_init__()
        if self.per != "row":
            raise ConfigError(f"per is {self.per!r}", "VSA lists equally many blocks in every row")

    def attend(self, q, k, v, state, call: AttentionCall, among: Among):
        """Attends to the listed blocks, and adds the gated coarse attention."""
        k = call.turn(k)
        mask, state = self.select(q, k, v, state, call)
        out = among(q, k, v, mask)
        if call.gate is None:
            return out, state
        coarse = self.coarse(q, k, v, call)
        return (out + call.gate.astype(jnp.float32) * coarse).astype(v.dtype), state

    def coarse(
        self,
        q: Float[Array, "B L N D"],
        k: Float[Array, "B L N D"],
        v: Float[Array, "B L N D"],
        call: AttentionCall,
    ) -> Float[Array, "B L N D"]:
        """Returns the float32 attention among means of blocks, in the order of the call."""
        if call.order is not None:
            blocks = Blocks(call.grid, call.order)
        else:
            blocks = blocks_of(call.grid, self.block)
            q, k, v = (blocks.ordered(x) for x in (q, k, v))
        shares = self.draft(q, k, blocks)
        out = blocks.spread(jnp.einsum("bnqk,bnkd->bnqd", shares, blocks.pool(v)))
        return out if call.order is not None else blocks.raster(out)
