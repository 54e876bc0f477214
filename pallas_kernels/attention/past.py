"""Keys and values that come before those of a call, read where they are kept."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.block_mask import BlockMask


class Past(NamedTuple):
    """Keys and values of a cache, one entry of a stack, before those of a call.

    A network keeps those of all layers in one array, of which a layer reads its own. Together
    with what a call brings they are `P' + K` keys, where `P'` is `P` up to the end of a block:
    what fills it is attended to by nothing, as the mask of the call has to say.

    Attributes:
        k: `[R, B, P, H, D]`, keys of `R` entries.
        v: `[R, B, P, H, D]`, values.
        row: i32[], which entry is read.
    """

    k: Float[Array, "R B P H D"]
    v: Float[Array, "R B P H D"]
    row: Int[Array, ""]

    def length(self, block: int) -> int:
        """Returns `P'`, the keys up to the end of the last of its blocks."""
        return -(-self.k.shape[2] // block) * block

    def before(
        self, k: Float[Array, "B K H D"], v: Float[Array, "B K H D"], block: int
    ) -> tuple[Float[Array, "B L H D"], Float[Array, "B L H D"]]:
        """Returns keys and values of both, one after the other: zeros fill the last block."""
        fill = ((0, 0), (0, self.length(block) - self.k.shape[2]), (0, 0), (0, 0))

        def joined(stack: Array, new: Array) -> Array:
            own = jax.lax.dynamic_index_in_dim(stack, self.row, keepdims=False)
            return jnp.concatenate([jnp.pad(own, fill), new], 1)

        return joined(self.k, k), joined(self.v, v)

    def gradient(self, d_k: Array, d_v: Array, block: int) -> tuple["Past", Array, Array]:
        """Returns the gradients of the stack, and of the keys and values of the call.

        Args:
            d_k: `[B, L, H, D]`, gradients of what `before` returns.
            d_v: The same of values.
            block: As it was given there.
        """

        def of_stack(stack: Array, d: Array) -> Array:
            own = d[None, :, : stack.shape[2]].astype(stack.dtype)
            return jax.lax.dynamic_update_index_in_dim(jnp.zeros_like(stack), own, self.row, 0)

        none: Any = None
        past = Past(of_stack(self.k, d_k), of_stack(self.v, d_v), none)
        return past, d_k[:, self.length(block) :], d_v[:, self.length(block) :]


class Prepared(NamedTuple):
    """A mask, and what a kernel reads of it: made once for the layers that share it.

    Attributes:
        mask: The blocks that are attended to.
        work: What `mosaic_gpu` reads of it; None where that does not serve.
    """

    mask: BlockMask
    work: Any = None
