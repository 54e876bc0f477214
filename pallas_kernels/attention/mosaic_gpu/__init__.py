"""Block-sparse attention on Hopper GPUs."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.attention import tables
from pallas_kernels.attention.kernel import whole_blocks
from pallas_kernels.attention.mosaic_gpu.backward import backward
from pallas_kernels.attention.mosaic_gpu.cells import fits, in_tiles, refusal, served
from pallas_kernels.attention.mosaic_gpu.forward import forward
from pallas_kernels.attention.mosaic_gpu.mass import QUERIES, TILE_SIZE, WARP_ROWS, mass
from pallas_kernels.attention.mosaic_gpu.sizes import (
    KERNEL,
    BackwardSizes,
    ForwardSizes,
    mass_stages,
)
from pallas_kernels.attention.mosaic_gpu.skipping import refusal as refusal_of_skips
from pallas_kernels.attention.mosaic_gpu.tiles import Work, prepare
from pallas_kernels.attention.mosaic_gpu.walks import prepare_walks
from pallas_kernels.attention.past import Past
from pallas_kernels.attention.planned import capability
from pallas_kernels.attention.xla import queries_gradient
from pallas_kernels.block_mask import BlockMask

__all__ = ["MosaicGPU"]

HOPPER = "9.0 (H100, H200)"


@dataclasses.dataclass(frozen=True)
class MosaicGPU:
    """The kernels for GPUs of compute capability 9.0: H100 and H200."""

    processors: int | None = None
    """Streaming multiprocessors to use; all of the default device if None."""
    forward_sizes: ForwardSizes | None = None
    """Tiles of the forward pass; None: as the tables say for the default device."""
    backward_sizes: BackwardSizes | None = None
    """The same of the backward pass."""
    deterministic: bool = False
    """Whether gradients of queries are equal bit for bit in every call, for more time: not by the
    kernel, which adds them up in the order in which they are ready, but by XLA."""

    def refusal(self, q: Any, k: Any, mask: BlockMask) -> str:
        """Returns why the kernels cannot serve such a call on this GPU; empty if they can."""
        reason = self.refusal_of_inputs(q) or refusal(mask)
        if reason or mask.skip_log2 is None:
            return reason
        return refusal_of_skips(mask, self._forward_sizes(mask, q))

    def refusal_of_mass(self, q: Any, block_q: int, block_kv: int) -> str:
        """The same for `mass`."""
        reason = self.refusal_of_inputs(q)
        if reason or not (block_q % WARP_ROWS or block_kv % WARP_ROWS):
            return reason
        return f"blocks of {block_q} queries and {block_kv} keys are not multiples of {WARP_ROWS}"

    def refusal_of_inputs(self, q: Any) -> str:
        """The same for any blocks."""
        reason = self.refusal_of_device()
        if reason:
            return reason
        if q.dtype not in (jnp.bfloat16, jnp.float16):
            return f"the inputs are {q.dtype}, not bfloat16 or float16"
        if q.shape[-1] > 128:
            return f"the head size {q.shape[-1]} is above 128"
        return ""

    def refusal_of_device(self) -> str:
        """The same for any call."""
        found = capability()
        return "" if found == "9.0" else f"the GPU has compute capability {found}, not {HOPPER}"

    def about(self, mask: BlockMask) -> str:
        """Says how small blocks are served, and whose tiles if the tables lack this device."""
        return "; ".join(filter(None, (served(mask), tables.about(KERNEL, _device()))))

    def reads(self, past: Past, mask: BlockMask) -> bool:
        """Returns whether `forward` reads keys from before where they are, without padding them."""
        length, size = past.k.shape[2], past.k.shape[4]
        return size in (64, 128) and length % 8 == 0 and fits(mask)

    def repeating(self) -> "MosaicGPU":
        """Returns the kernels with `deterministic` gradients of queries."""
        return dataclasses.replace(self, deterministic=True)

    def forward(
        self,
        q: Array,
        k: Array,
        v: Array,
        mask: BlockMask,
        scale: float,
        past: Past | None = None,
        work: Work | None = None,
    ) -> tuple[Array, Array]:
        """Returns attended values and the log-sum-exp of the scores; see `work_of`."""
        work = work or self.work_of(mask, q)
        inputs = _padded(q), _padded(k), _padded(v)
        out, lse = forward(*inputs, work, scale, self._processors, past)
        out, lse = out[:, : q.shape[1], :, : q.shape[3]], lse[:, :, : q.shape[1]]
        if fits(mask) or mask.q_lengths is None:
            return out, lse
        some = mask.q_counted[:, : q.shape[1]]
        return jnp.where(some[..., None, None], out, 0), jnp.where(some[:, None], lse, -jnp.inf)

    def work_of(self, mask: BlockMask, q: Any) -> Work:
        """Returns what the forward pass reads of a mask, for such queries."""
        tiled, listed = in_tiles(mask)
        sizes = self._forward_sizes(tiled, q)
        return prepare(tiled, q.shape[0], q.shape[2], self._processors, sizes, listed)

    def backward(
        self,
        q: Array,
        k: Array,
        v: Array,
        mask: BlockMask,
        scale: float,
        lse: Array,
        d_out: Array,
        delta: Array,
    ) -> tuple[Array, Array, Array]:
        """Returns the gradients; see `deterministic` of those of queries."""
        heads, size = q.shape[2], _padded(q).shape[3]
        tiled, listed = in_tiles(mask)
        sizes = self.backward_sizes or BackwardSizes.of(_device(), tiled.block_kv, size)
        walks = prepare_walks(tiled, q.shape[0], heads, self._processors, sizes, listed)
        if mask.kv_lengths is not None:
            known = mask.kv_counted[:, : k.shape[1], None, None]
            k, v = jnp.where(known, k, 0), jnp.where(known, v, 0)
        inputs = _padded(q), _padded(k), _padded(v), _padded(d_out)
        if listed is not None:  # up to the end of the last tile, not of the last block
            lse, sums = (x[..., : q.shape[1]] for x in (lse, delta))
            lse = whole_blocks(lse, tiled.block_q)
            delta = jnp.pad(sums, ((0, 0), (0, 0), (0, lse.shape[2] - sums.shape[2])))
        d_q, d_k, d_v = backward(*inputs, lse, delta, walks, scale)
        if self.deterministic:
            d_q = queries_gradient(q, k, v, mask, scale, d_out, delta)
        return (
            d_q[:, : q.shape[1], :, : q.shape[3]],
            d_k[:, : k.shape[1], :, : k.shape[3]],
            d_v[:, : v.shape[1], :, : v.shape[3]],
        )

    def mass(
        self,
        q: Array,
        k: Array,
        lse: Float[Array, "B N Q"],
        block_q: int,
        block_kv: int,
        scale: float,
        kv_lengths: Int[Array, "#B k"] | None = None,
    ) -> Float[Array, "B N q k"]:
        """Returns the sums of the weights of blocks of queries and keys, multiples of 16.

        The kernel counts all keys. Those that do not count are therefore read as the first one of
        their block, and what it has of the weights is taken off as often.
        """
        if kv_lengths is not None:
            blocks, first = jnp.arange(k.shape[1]) // block_kv, k[:, ::block_kv]
            known = (jnp.arange(k.shape[1]) % block_kv)[None] < kv_lengths[:, blocks]
            filled = jnp.where(known[..., None, None], k, first[:, blocks])
            sums = self.mass(q, filled, lse, block_q, block_kv, scale)
            absent = jnp.bincount(blocks, length=first.shape[1])[None] - kv_lengths
            firsts = jnp.repeat(first, WARP_ROWS, 1)  # as many as the kernel adds up at least
            of_first = self.mass(q, firsts, lse, block_q, WARP_ROWS, scale) / WARP_ROWS
            sums -= absent[:, None, None] * of_first
            return jnp.where(kv_lengths[:, None, None] > 0, jnp.maximum(sums, 0.0), 0.0)
        unit = math.gcd(block_kv, TILE_SIZE)
        levels = whole_blocks(lse, QUERIES)
        inputs = _padded(q), _padded(k), levels
        stages = mass_stages(_device(), inputs[0].shape[3])
        sums = mass(*inputs, unit, scale, k.shape[1], self._processors, stages)
        rows, columns = -(-q.shape[1] // block_q), -(-k.shape[1] // block_kv)
        per_row, per_column = block_q // WARP_ROWS, block_kv // unit
        sizes = (*sums.shape[:2], rows * per_row, columns * per_column)
        sums = sums[:, :, : sizes[2], : sizes[3]]
        sums = jnp.pad(sums, [(0, n - m) for n, m in zip(sizes, sums.shape, strict=True)])
        sums = sums.reshape(*sums.shape[:2], rows, per_row, columns, per_column)
        return jnp.sum(sums, (3, 5))

    def _forward_sizes(self, mask: BlockMask, q: Any) -> ForwardSizes:
        blocks = mask.block_q, mask.block_kv, _head(q.shape[3])
        return self.forward_sizes or ForwardSizes.of(_device(), *blocks)

    @property
    def _processors(self) -> int:
        return self.processors or jax.devices()[0].core_count


def _device() -> str:
    return jax.devices()[0].device_kind


def _padded(x: Float[Array, "B L N D"]) -> Float[Array, "B l N d"]:
    """Pads lengths to multiples of 8, and heads to a size of 64 or 128."""
    short = _head(x.shape[3]) - x.shape[3]
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % 8), (0, 0), (0, short)))


def _head(size: int) -> int:
    return 64 if size <= 64 else 128
