"""Block-sparse attention on TPUs."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pallas_kernels.attention import tables
from pallas_kernels.attention.pallas_tpu.backward import Inputs, backward_kv, backward_q
from pallas_kernels.attention.pallas_tpu.forward import forward
from pallas_kernels.attention.pallas_tpu.lists import pack
from pallas_kernels.attention.pallas_tpu.tiles import (
    KERNEL,
    LANES,
    SUBLANES,
    WHOLE,
    Limits,
    Tiles,
)
from pallas_kernels.attention.pallas_tpu.walk import Options
from pallas_kernels.block_mask import BlockMask

__all__ = ["PallasTPU"]

Pass = Literal["forward", "backward_q", "backward_kv"]
WORKING = 16 << 20  # bytes of vector memory, for all but keys and values of a head


@dataclasses.dataclass(frozen=True)
class PallasTPU:
    """The kernels for TPUs, from v4 on."""

    interpret: Any = False
    """False on a TPU; True or `pltpu.InterpretParams` to run without one."""
    limits: Limits | None = None
    """What a step computes at most, in every pass; None: as the tables say for the chip."""
    resident: bool | None = None
    """Whether keys and values of a head lie in vector memory; None: if they fit."""

    def refusal(self, q: Any, k: Any, mask: BlockMask) -> str:
        """Returns why the kernels cannot serve such a call here; empty if they can."""
        kind = jax.devices()[0].device_kind
        if not self.interpret and (jax.default_backend() != "tpu" or kind in ("TPU v2", "TPU v3")):
            return f"the default device is {kind}, not a TPU from v4 on"
        if q.dtype not in (jnp.bfloat16, jnp.float32):
            return f"the inputs are {q.dtype}, not bfloat16 or float32"
        for block in (mask.block_q, mask.block_kv):
            if block % SUBLANES or (block > WHOLE and block % LANES):
                return (
                    f"blocks of {block} tokens: they must be a multiple of {SUBLANES}, and above "
                    f"{WHOLE} one of {LANES}"
                )
        return ""

    def about(self, mask: BlockMask) -> str:
        """Says whose tile sizes serve, if the tables do not know this chip."""
        return tables.about(KERNEL, self._chip)

    def repeating(self) -> "PallasTPU":
        """Returns the kernels as they are: they add in one order."""
        return self

    def forward(
        self,
        q: Float[Array, "B Q N D"],
        k: Float[Array, "B K H D"],
        v: Float[Array, "B K H D"],
        mask: BlockMask,
        scale: float,
    ) -> tuple[Float[Array, "B Q N D"], Float[Array, "B N Q"]]:
        """Returns attended values and the log-sum-exp of the scores."""
        queries, keys, values = (
            _by_head(x, block)
            for x, block in ((q, mask.block_q), (k, mask.block_kv), (v, mask.block_kv))
        )
        options = self._options("forward", mask, keys)
        lists, limits = pack(mask, options.tiles), _limits(mask, q.shape[0], q.shape[2])
        out, lse = forward(queries, keys, values, lists, scale, options, limits)
        lse = lse.reshape(q.shape[0], q.shape[2], -1)[:, :, : q.shape[1]]
        if mask.q_lengths is not None:
            known = mask.q_counted[:, : q.shape[1]]
            lse = jnp.where(known[:, None], lse, -jnp.inf)
            return jnp.where(known[..., None, None], _by_token(out, q), 0), lse
        return _by_token(out, q), lse

    def backward(
        self,
        q: Array,
        k: Array,
        v: Array,
        mask: BlockMask,
        scale: float,
        lse: Float[Array, "B N L"],
        d_out: Float[Array, "B Q N D"],
        delta: Float[Array, "B N L"],
    ) -> tuple[Array, Array, Array]:
        """Returns the gradients, equal bit for bit from call to call."""
        queries = functools.partial(_by_head, block=mask.block_q)
        keys = functools.partial(_by_head, block=mask.block_kv)
        arrays = queries(q), keys(k), keys(v), queries(d_out)
        lse, delta = (x.reshape(len(arrays[0]), -1) for x in (lse, delta))
        inputs = Inputs(*arrays, lse, delta)
        options = self._options("backward_q", mask, inputs.k)
        turned = mask.transpose()
        d_q = backward_q(inputs, pack(mask, options.tiles), scale, options)
        options = self._options("backward_kv", turned, inputs.q)
        lists = pack(turned, options.tiles, cut=False)
        d_k, d_v = (
            _by_token(x.reshape(len(arrays[1]), -1, *x.shape[1:]).sum(1), k).astype(k.dtype)
            for x in backward_kv(inputs, lists, scale, options)
        )
        return _by_token(d_q, q), d_k, d_v

    def _options(self, part: Pass, mask: BlockMask, like: Any) -> Options:
        """Returns how a pass runs whose keys and values are like an array `[X, K, D]`."""
        listed = mask.kv_indices.shape[3] * mask.block_kv
        limits = self.limits or Limits.of(self._chip, part, mask.block_q)
        tiles = Tiles.of(mask.block_q, mask.block_kv, listed, limits)
        held = 2 * like.shape[1] * like.shape[2] * like.dtype.itemsize
        resident = self.resident
        if resident is None:
            free = 0 if self.interpret else pltpu.get_tpu_info().vmem_capacity_bytes - WORKING
            resident = held <= free
        memory = held + WORKING if resident else None
        return Options(tiles._replace(resident=resident), memory, self.interpret)

    @property
    def _chip(self) -> str:
        return "an interpreter" if self.interpret else str(pltpu.get_tpu_info().chip_version)


def _limits(mask: BlockMask, batch: int, heads: int) -> Float[Array, "X Q"] | None:
    """Returns `skip_log2` of every query of every head; +inf for those that do not count."""
    if mask.skip_log2 is None:
        return None
    limits = jnp.where(mask.q_counted[:, None], mask.skip_log2.repeat(mask.block_q, 2), jnp.inf)
    limits = jnp.broadcast_to(limits, (batch, heads, limits.shape[2]))
    return limits.reshape(-1, limits.shape[2])


def _by_head(x: Float[Array, "B L N D"], block: int) -> Float[Array, "X l d"]:
    """Lays out a sequence per head, padded to whole blocks and lanes."""
    short = (0, -x.shape[1] % block), (0, 0), (0, -x.shape[3] % LANES)
    x = jnp.pad(x, ((0, 0), *short)).swapaxes(1, 2)
    return x.reshape(-1, *x.shape[2:])


def _by_token(x: Float[Array, "X l d"], like: Float[Array, "B L N D"]) -> Float[Array, "B L N D"]:
    """Reverses `_by_head`, for a sequence like another."""
    batch, length, heads, size = like.shape
    x = x.reshape(batch, heads, *x.shape[1:])[:, :, :length, :size]
    return x.swapaxes(1, 2)
