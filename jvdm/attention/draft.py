"""DraftAttention: a draft of attention among patches says which patches attend to which."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float
from jvdm.attention.blocks import Blocks
from jvdm.attention.policy import AttentionCall
from jvdm.attention.sparse import Sparse
from jvdm.errors import ConfigError
from pallas_kernels import best_blocks


@dataclasses.dataclass(frozen=True)
class Draft(Sparse):
    """Attention of the means of blocks decides what the tokens attend to (arXiv:2505.14708).

    In every sparse layer of every sparse row queries and keys are averaged over the patches of
    a frame, after norm and rotary positions; the softmax of their products is the draft. The
    paper's defaults: 8 x 16 patches, the first quarter of the rows and the first layer dense.

    What is ours: every row lists equally many blocks, where the authors' code takes one
    threshold per head (`per="head"`) and may leave a block of queries with nothing; any
    resolution (short patches at the border count by their tokens); a draft per sample, where
    theirs is that of the first one.
    """

    dense_rows: float = 0.25
    dense_layers: int = 1
    per: str = "row"
    """Whether the density holds for every "row", a block of queries, or for a "head" as a whole."""

    def __post_init__(self) -> None:
        """Raises `ConfigError` for a field that is out of range."""
        super().__post_init__()
        if self.per not in ("row", "head"):
            raise ConfigError(f"per is {self.per!r}", "density is per row or per head")
        if self.per == "head" and self.shares:
            what, fix = "shares of a density per head", "use per='row', or no shares"
            raise ConfigError(what, "one threshold of a head has no number per row", fix)

    def choose(self, q, k, v, call: AttentionCall, blocks: Blocks):
        """Marks the highest entries of the draft."""
        drafted, count = self.draft(q, k, blocks), self.listed(blocks)
        if self.per == "row":
            return self.best(drafted, call, blocks), count
        flat = drafted.reshape(*drafted.shape[:2], 1, -1)
        marked = best_blocks(flat, count * blocks.count).reshape(drafted.shape)
        return marked | best_blocks(drafted, 1), None  # no block of queries is left with nothing

    def draft(
        self, q: Float[Array, "B L N D"], k: Float[Array, "B L N D"], blocks: Blocks
    ) -> Float[Array, "B N Q K"]:
        """Returns the attention among the means of blocks: rows sum to 1.

        A block of keys counts as often as it has tokens, so that this is the attention of the
        tokens, summed over blocks, where all tokens of a block are equal.
        """
        asks, says = blocks.pool(q), blocks.pool(k)
        scores = jnp.einsum("bnqd,bnkd->bnqk", asks, says) * q.shape[3] ** -0.5
        return jax.nn.softmax(scores + np.log(blocks.lengths)[None, None, None], -1)
