"""Frame-causal attention whose finished frames are read from a cache of keys and values."""

import dataclasses
import typing
from typing import Any, Literal

import flax.struct
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float, Int
from jvdm.attention.blocks import LARGEST
from jvdm.attention.policy import Among, AttentionCall, Policy, TokenGrid
from jvdm.errors import ConfigError
from jvdm.samplers import Row
from pallas_kernels import BlockMask

EMPTY = -1  # frame of a slot that holds none


@typing.no_type_check
@flax.struct.dataclass
class KVCache:
    """Keys and values of whole latent frames, one frame a slot.

    Attributes:
        k: `[B, S, P, N, D]`, keys of `S` slots of `P` tokens.
        v: `[B, S, P, N, D]`, values.
        frames: i32[S], absolute index of the frame in each slot, -1 where there is none.
    """

    k: Float[Array, "B S P N D"]
    v: Float[Array, "B S P N D"]
    frames: Int[Array, " S"]

    @classmethod
    def empty(cls, grid: TokenGrid, slots: int) -> "KVCache":
        """Returns a cache without frames, in the number type of the network."""
        shape = (grid.batch, slots, grid.tokens_per_frame, grid.heads, grid.head_dim)
        nothing = jnp.zeros(shape, grid.dtype)
        return cls(nothing, nothing, jnp.full(slots, EMPTY, jnp.int32))

    def write(
        self,
        k: Float[Array, "B L N D"],
        v: Float[Array, "B L N D"],
        frames: Int[Array, " W"],
        slots: Int[Array, " W"],
    ) -> "KVCache":
        """Returns the cache with frames in these slots; one whose slot is not below `S` is not.

        Writing a frame twice is writing it once, which solvers of two evaluations do.
        """

        def put(old: Array, new: Array) -> Array:
            whole = new.reshape(new.shape[0], len(slots), *old.shape[2:])
            return old.at[:, slots].set(whole.astype(old.dtype), mode="drop")

        held = self.frames.at[slots].set(frames.astype(jnp.int32), mode="drop")
        return KVCache(put(self.k, k), put(self.v, v), held)

    def truncate(self, frame: int | Int[Array, ""]) -> "KVCache":
        """Returns the cache without `frame` and those after it, to go on from there otherwise.

        What had been overwritten by them does not come back.
        """
        return self.forget(frame, jnp.iinfo(jnp.int32).max)

    def forget(self, first: int | Int[Array, ""], last: int | Int[Array, ""]) -> "KVCache":
        """Returns the cache without the frames from `first` to before `last`.

        From the end of the sink to two frames before the next one, it is what Infinity-RoPE does
        where the prompt changes.
        """
        gone = (self.frames >= first) & (self.frames < last)
        return KVCache(self.k, self.v, jnp.where(gone, EMPTY, self.frames))


@dataclasses.dataclass(frozen=True)
class CachedCausal(Policy):
    """Frame-causal attention, for matrices whose rows write finished frames (`CachedMatrix`).

    A frame attends to its block, to earlier ones of its window, and to all cached frames before
    the window. Slots have roles: the first `sink` frames of the video stay for ever, `pinned` ones
    stay until others are pinned, and the others are a ring. Cached equals recomputed (`FrameCausal`
    on the whole video) as long as no frame has been overwritten: then frames of the cache still
    know what they saw, which none sees any more (ViD-GPT, arXiv:2406.10981; Self-Forcing,
    arXiv:2506.08009; sinks: LongLive, arXiv:2509.22622).
    """

    frames: int = 32
    """Latent frames that the cache holds."""
    sink: int = 0
    """How many of them are the first of the video for ever."""
    pinned: int = 0
    """How many are for frames that are chosen while the video is made (`pin`)."""
    block: int = 1
    """Latent frames that see each other freely."""
    rotary: Literal["write", "read"] = "write"
    """When keys get their positions. Written with them, they are absolute, and cheap; read with
    them, the oldest frame of the ring follows the others, so that positions stay small for ever."""
    free: bool = False
    """Whether all frames of the window see each other, those of later blocks too: for networks that
    were trained on rolling windows (Rolling Forcing, arXiv:2509.25161)."""

    def init(self, grid: TokenGrid) -> KVCache:
        """Returns an empty cache."""
        if self.block < 1 or min(self.sink, self.pinned) < 0 or self._ring < self.block:
            raise ConfigError(
                f"a cache of {self.frames} latent frames, {self.sink} of them a sink and "
                f"{self.pinned} pinned, in blocks of {self.block}",
                "a block has a frame or more, the ring behind sink and pinned ones a whole block",
                "use a larger cache, a smaller sink or fewer that are pinned",
            )
        return KVCache.empty(grid, self.frames)

    @property
    def _ring(self) -> int:
        return self.frames - self.sink - self.pinned

    def slots(self, frames: Int[Array | np.ndarray, " W"]) -> Int[Array, " W"]:
        """Returns the slot of each frame: a sink is its own, the others go round in the ring."""
        ring = self.sink + self.pinned + (frames - self.sink) % self._ring
        return jnp.where(frames < self.sink, frames, ring)

    def pin(self, state: KVCache, frames: Int[Array, " n"]) -> KVCache:
        """Keeps frames that a layer's cache holds, instead of those that were pinned before.

        They are the first ones of a shot after a cut (LongLive 2's second sink), or those that
        show what comes into view again. One that is no longer held leaves its slot empty.

        Args:
            state: The cache of a layer; `jax.vmap` does those of all.
            frames: Absolute frames, in their order, at most `pinned`.
        """
        there = state.frames[None] == frames[:, None]
        mine = self.sink + np.arange(len(frames))

        def put(x: Array) -> Array:
            return x.at[:, mine].set(x[:, there.argmax(1)])

        empty = state.frames.at[self.sink : self.sink + self.pinned].set(EMPTY)
        held = empty.at[mine].set(jnp.where(there.any(1), frames, EMPTY))
        return KVCache(put(state.k), put(state.v), held)

    def positions(self, positions: Float[Array, " W"], row: Row) -> Float[Array, " W"]:
        """Returns absolute places, or those behind the cache."""
        first = row.frame - self._moved(row)
        return (first + jnp.arange(len(positions))).astype(jnp.float32)

    def attend(self, q, k, v, state: KVCache, call: AttentionCall, among: Among):
        """Attends in blocks of whole frames, of as many slots as kernels want."""
        keys, values, mask, state = self.attended(q, k, v, state, call)
        out = among(_in_slots(q, call.grid), keys, values, mask)
        frames = out.reshape(out.shape[0], call.grid.frames, -1, *out.shape[2:])
        return frames[:, :, : call.grid.tokens_per_frame].reshape(q.shape), state

    def attended(self, q, k, v, state: KVCache, call: AttentionCall):
        """Puts the cache before the window, then writes the frames that the row says."""
        turned = call.turn(k)
        cached, values = (x.reshape(x.shape[0], -1, *x.shape[3:]) for x in (state.k, state.v))
        if self.rotary == "read":
            cached = call.turn(cached, self._places(state, call.row))
        keys = _in_slots(jnp.concatenate([cached, turned], 1), call.grid)
        mask, _ = self.select(q, keys, v, state, call)
        frames = self._window(call)
        slots = jnp.where(call.row.write, self.slots(frames), self.frames)
        state = state.write(k if self.rotary == "read" else turned, v, frames, slots)
        return keys, _in_slots(jnp.concatenate([values, v], 1), call.grid), mask, state

    def select(self, q, k, v, state: KVCache, call: AttentionCall):
        """Allows, of the keys of cache and window, those before the window and of no later block.

        A frame of the window that is cached already is read from the window, and a pinned one from
        the ring as long as it is there.
        """
        frames, per_frame = self._window(call), call.grid.tokens_per_frame
        size = slots_of(per_frame)
        twice = self._is_pinned & (
            state.frames[:, None] == state.frames[None, ~self._is_pinned]
        ).any(1)
        held = (state.frames >= 0) & (state.frames < call.row.frame) & ~twice
        block = frames // self.block
        inside = self.free | (block[:, None] >= block[None])
        before = jnp.broadcast_to(held[None], (len(frames), len(held)))
        allowed = jnp.concatenate([before, inside], 1)[None, None]
        sizes: Any = {"q_len": len(frames) * size, "kv_len": k.shape[1]}
        sizes |= {"block_q": size, "block_kv": size}
        if size > per_frame:
            lengths = jnp.full((1, allowed.shape[3]), per_frame, jnp.int32)
            sizes |= {"kv_lengths": lengths}
        return BlockMask.from_dense(allowed, **sizes), state

    def _window(self, call: AttentionCall) -> Int[Array, " W"]:
        """Returns the absolute frames of the window."""
        return call.row.frame + jnp.arange(call.grid.frames, dtype=jnp.int32)

    @property
    def _is_pinned(self) -> np.ndarray:
        slots = np.arange(self.frames)
        return (slots >= self.sink) & (slots < self.sink + self.pinned)

    def _places(self, state: KVCache, row: Row) -> Float[Array, " S"]:
        """Returns where cached frames stand when they are read: sink, pinned ones, ring."""
        moved = state.frames - jnp.where(state.frames < self.sink, 0, self._moved(row))
        pinned = jnp.minimum(state.frames, np.arange(self.frames))
        return jnp.where(self._is_pinned, pinned, moved).astype(jnp.float32)

    def _moved(self, row: Row) -> Int[Array, ""]:
        """Returns by how many places the ring and the window have moved up."""
        if self.rotary == "write":
            return jnp.zeros((), jnp.int32)
        return jnp.maximum(row.frame - self.frames, 0)


def slots_of(tokens: int) -> int:
    """Returns the slots of a frame of so many tokens: whole blocks, unless it is a small one."""
    return tokens if tokens <= LARGEST // 2 else -(-tokens // LARGEST) * LARGEST


def _in_slots(x: Float[Array, "B L N D"], grid: TokenGrid) -> Float[Array, "B S N D"]:
    """Pads every frame to its slots."""
    per_frame = grid.tokens_per_frame
    frames = x.reshape(x.shape[0], -1, per_frame, *x.shape[2:])
    short = ((0, 0), (0, 0), (0, slots_of(per_frame) - per_frame), (0, 0), (0, 0))
    return jnp.pad(frames, short).reshape(x.shape[0], -1, *x.shape[2:])
