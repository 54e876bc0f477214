"""Block-sparse attention on Blackwell: NVIDIA's kernels, where its cuDNN frontend is installed.

Its JAX adapter (`cudnn.block_sparse_attention.jax_api`, since 1.32; experimental there) serves one
process, bfloat16, whole blocks of 128 and heads of 64 or 128. It is never chosen unasked.
"""

import dataclasses
import importlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.attention.kernel import KernelUnavailable
from pallas_kernels.attention.planned import capability
from pallas_kernels.block_mask import BlockMask

MODULE = "cudnn.block_sparse_attention.jax_api"
BLOCK = 128
TINY = 1e-12  # gradients so small change nothing, in bfloat16, but have a direction


@dataclasses.dataclass(frozen=True)
class Cudnn:
    """The kernels of NVIDIA's cuDNN frontend for GPUs of compute capability 10.0: B100 and B200."""

    def refusal(self, q: Any, k: Any, mask: BlockMask) -> str:
        """Returns why the kernels cannot serve such a call here; empty if they can."""
        found = capability()
        cut = mask.kv_lengths is not None or mask.kv_len % BLOCK
        reasons = {
            f"the GPU has compute capability {found}, not 10.0 (B100, B200)": found != "10.0",
            f"{jax.process_count()} processes run, it serves one": jax.process_count() > 1,
            f"the inputs are {q.dtype}, not bfloat16": q.dtype != jnp.bfloat16,
            f"the head size {q.shape[-1]} is above 128": q.shape[-1] > 128,
            f"blocks of {mask.block_q} queries and {mask.block_kv} keys are not of {BLOCK}": (
                (mask.block_q, mask.block_kv) != (BLOCK, BLOCK)
            ),
            f"some of the {mask.kv_len} keys do not fill a block of {BLOCK}": cut,
            "blocks are attended to in part": mask.by_place,
            "blocks are skipped by their scores (skip_log2)": mask.skip_log2 is not None,
        }
        return next((reason for reason, true in reasons.items() if true), "") or _missing()

    def about(self, mask: BlockMask) -> str:
        """Says that others made the kernels."""
        return "they are those of NVIDIA's cuDNN frontend"

    def repeating(self) -> "Cudnn":
        """Refuses."""
        raise KernelUnavailable("cudnn: it adds gradients of queries in no fixed order")

    def forward(
        self, q: Array, k: Array, v: Array, mask: BlockMask, scale: float
    ) -> tuple[Array, Array]:
        """Returns attended values and the log-sum-exp of the scores."""
        inputs = _padded(q), _shared(k, q), _shared(v, q)
        lists = _lists(mask, q)
        found = _module().block_sparse_attention_forward(
            *inputs, lists.indices, **_options(lists, scale)
        )
        some = jnp.repeat(lists.counts > 0, BLOCK, axis=2)[:, :, : q.shape[1]]
        if mask.q_lengths is not None:
            some &= mask.q_counted[:, None, : q.shape[1]]
        out = found["o_tensor"][:, : q.shape[1], :, : q.shape[3]]
        lse = found["lse_tensor"][:, :, : q.shape[1]]
        return (
            jnp.where(some.swapaxes(1, 2)[..., None], out, jnp.zeros_like(out)),
            jnp.where(some, lse, -jnp.inf),
        )

    def backward(
        self,
        q: Float[Array, "B Q N D"],
        k: Array,
        v: Array,
        mask: BlockMask,
        scale: float,
        lse: Float[Array, "B N L"],
        d_out: Array,
        delta: Array,
    ) -> tuple[Array, Array, Array]:
        """Returns the gradients of queries, keys and values.

        The kernels take `delta` from the attended values, as their products with `d_out`; they are
        given values of which it comes out with the gradient of the log-sum-exp.
        """
        inputs = _padded(q), _shared(k, q), _shared(v, q)
        d_out, values = _with_products(_padded(d_out), delta.swapaxes(1, 2))
        lists = _lists(mask, q)
        found = _module().block_sparse_attention_backward(
            d_out, *inputs, values, lse, lists.indices, **_options(lists, scale)
        )
        return (
            found["dq_tensor"][:, : q.shape[1], :, : q.shape[3]],
            _summed(found["dk_tensor"], k),
            _summed(found["dv_tensor"], v),
        )


class _Lists(NamedTuple):
    indices: Int[Array, "B N Q M"]
    counts: Int[Array, "B N Q"]


def _lists(mask: BlockMask, q: Array) -> _Lists:
    """Returns the lists of every head of every batch row."""
    shape = q.shape[0], q.shape[2], mask.grid[0]
    indices = jnp.broadcast_to(mask.kv_indices, (*shape, mask.kv_indices.shape[3]))
    return _Lists(indices, jnp.broadcast_to(mask.kv_counts, shape))


def _options(lists: _Lists, scale: float) -> dict[str, Any]:
    return {
        "q2k_block_nums": lists.counts,
        "sparse_block_size": BLOCK,
        "layout": "bshd",
        "softmax_scale": scale,
        "allow_empty_block_nums": True,
    }


def _with_products(
    d_out: Float[Array, "B L N D"], delta: Float[Array, "B L N"]
) -> tuple[Float[Array, "B L N D"], Float[Array, "B L N D"]]:
    """Returns gradients, none of which is 0, and values along them whose products are `delta`."""
    wide = d_out.astype(jnp.float32)
    small = jnp.sum(wide**2, -1, keepdims=True) < TINY**2
    d_out = jnp.where(small, jnp.asarray(TINY, d_out.dtype), d_out)
    wide = d_out.astype(jnp.float32)
    values = wide * (delta[..., None] / jnp.sum(wide**2, -1, keepdims=True))
    return d_out, values.astype(d_out.dtype)


def _padded(x: Float[Array, "B L N D"]) -> Float[Array, "B l N d"]:
    """Pads a sequence to whole blocks, and heads to a size of 64 or 128."""
    size = 64 if x.shape[3] <= 64 else 128
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % BLOCK), (0, 0), (0, size - x.shape[3])))


def _shared(x: Float[Array, "B K H D"], q: Float[Array, "B Q N D"]) -> Float[Array, "B K N d"]:
    """Repeats heads of keys for all heads of queries that share them."""
    return jnp.repeat(_padded(x), q.shape[2] // x.shape[2], axis=2)


def _summed(x: Float[Array, "B K N d"], like: Float[Array, "B K H D"]) -> Float[Array, "B K H D"]:
    """Reverses `_shared` for gradients."""
    batch, length, heads, size = like.shape
    x = x.reshape(batch, length, heads, -1, x.shape[3])[..., :size]
    return x.sum(3, dtype=jnp.float32).astype(like.dtype)


def _module() -> Any:
    return importlib.import_module(MODULE)


def _missing() -> str:
    """Returns why the adapter cannot be imported; empty if it can."""
    try:
        _module()
    except ImportError as error:
        return f"{MODULE} cannot be imported ({error}): pip install 'nvidia-cudnn-frontend>=1.32'"
    return ""
