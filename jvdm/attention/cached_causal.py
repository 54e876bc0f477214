"""Frame-causal attention whose finished frames are read from a cache of keys and values."""

import dataclasses
import itertools
import math
import typing
from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Float, Int, PyTree
from jvdm.attention.blocks import LARGEST
from jvdm.attention.packed_frames import EMPTY, PackedFrames, handed_down
from jvdm.attention.policy import Among, AttentionCall, Policy, TokenGrid
from jvdm.errors import ConfigError
from jvdm.samplers import Row
from pallas_kernels import BlockMask, Past, Prepared, merge, prepared
from pallas_kernels.block_mask import TIME_BITS

NEVER = BlockMask.MAX_TIME  # time of a frame that none sees


@typing.no_type_check
@flax.struct.dataclass
class KVCache:
    """Keys and values of whole latent frames, one frame a slot.

    Attributes:
        k: `[B, S, P, N, D]`, keys of `S` slots of `P` tokens.
        v: `[B, S, P, N, D]`, values.
        frames: i32[S], absolute index of the frame in each slot, -1 where there is none.
        places: i32[S], where that frame stands in time: its index and the jumps before it.
        jump: i32[], by how many places later than their indices frames now are.
        shot: i32[], first frame of the shot after the last cut, -1 before the first.
        older: Frames that left the ring, in rings of ever larger patches.
    """

    k: Float[Array, "B S P N D"]
    v: Float[Array, "B S P N D"]
    frames: Int[Array, " S"]
    places: Int[Array, " S"]
    jump: Int[Array, ""]
    shot: Int[Array, ""]
    older: tuple[PackedFrames, ...] = ()

    @classmethod
    def empty(cls, grid: TokenGrid, slots: int, older: tuple[PackedFrames, ...] = ()) -> "KVCache":
        """Returns a cache without frames, in the number type of the network."""
        shape = (grid.batch, slots, grid.tokens_per_frame, grid.heads, grid.head_dim)
        nothing, none = jnp.zeros(shape, grid.dtype), jnp.full(slots, EMPTY, jnp.int32)
        return cls(nothing, nothing, none, none, jnp.int32(0), jnp.int32(EMPTY), older)

    def write(
        self,
        k: Float[Array, "*R B L N D"],
        v: Float[Array, "*R B L N D"],
        frames: Int[Array, " W"],
        slots: Int[Array, " W"],
    ) -> "KVCache":
        """Returns the cache with frames in these slots; one whose slot is not below `S` is not.

        Writing a frame twice is writing it once, which solvers of two evaluations do. The caches of
        all layers, stacked, are written in one call, with stacked keys and values.
        """

        def put(old: Array, new: Array) -> Array:
            whole = new.reshape(*old.shape[:-4], len(slots), *old.shape[-3:]).astype(old.dtype)
            for at in range(len(slots)):  # copies, where a scatter on a GPU takes 8 times as long
                held = jax.lax.dynamic_index_in_dim(old, slots[at], -4)
                mine = jnp.where(slots[at] < old.shape[-4], whole[..., at, None, :, :, :], held)
                old = jax.lax.dynamic_update_index_in_dim(old, mine, slots[at], -4)
            return old

        frames = frames.astype(jnp.int32)
        held = self.frames.at[..., slots].set(frames, mode="drop")
        places = self.places.at[..., slots].set(jnp.add.outer(self.jump, frames), mode="drop")
        return dataclasses.replace(
            self, k=put(self.k, k), v=put(self.v, v), frames=held, places=places
        )

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
        older = tuple(ring.forget(first, last) for ring in self.older)
        return dataclasses.replace(self, frames=jnp.where(gone, EMPTY, self.frames), older=older)

    def cut(self, frame: int | Int[Array, ""], by: int) -> "KVCache":
        """Returns the cache of another shot from `frame` on, which is so many places later.

        As from there on all frames have larger places, they see less of what was before, the sink
        too, and each other as ever (LongLive 2; Infinity-RoPE, arXiv:2511.20649, has a cut of 42).
        """
        return dataclasses.replace(self, jump=self.jump + by, shot=jnp.full_like(self.shot, frame))


class Kept(NamedTuple):
    """What a cache has for all layers of a call.

    Attributes:
        k: `[R, B, S P, N, D]`, keys of all layers.
        v: `[R, B, S P, N, D]`, values.
        masks: Which of these and of those of the window are attended to, and which of others that
            weigh otherwise; the first is prepared for a kernel that reads the cache where it is.
    """

    k: Float[Array, "R B L N D"]
    v: Float[Array, "R B L N D"]
    masks: tuple[Prepared, ...]


class Made(NamedTuple):
    """Keys `[B, L, N, D]` of the frames of a window, as a cache keeps them, and values."""

    k: Float[Array, "*depth B L N D"]
    v: Float[Array, "*depth B L N D"]


@dataclasses.dataclass(frozen=True)
class CachedCausal(Policy):
    """Frame-causal attention, for matrices whose rows write finished frames (`CachedMatrix`).

    A frame attends to its block, to earlier ones of its window, and to all cached frames before
    these; the last windows of a clip begin with cached ones. Slots have roles: the first `sink`
    frames of the video stay for ever, `pinned` ones, the first after a cut, until the next one, and
    the others are a ring. Cached equals recomputed
    (`FrameCausal` on the whole video) as long as no frame has been overwritten: then frames of the
    cache still know what they saw, which none sees any more (ViD-GPT, arXiv:2406.10981;
    Self-Forcing, arXiv:2506.08009; sinks: LongLive, arXiv:2509.22622; cuts: arXiv:2605.18739).
    """

    frames: int = 32
    """Latent frames that the cache holds."""
    sink: int = 0
    """How many of them are the first of the video for ever."""
    pinned: int = 0
    """How many are for the first frames after a cut, or those that are chosen (`pin`)."""
    block: int = 1
    """Latent frames that see each other freely."""
    rotary: Literal["write", "read"] = "write"
    """When keys get their positions. Written with them, they are absolute, and cheap; read with
    them, the oldest frame of the ring follows the others, so that positions stay small for ever."""
    free: bool = False
    """Whether all frames of the window see each other, those of later blocks too: for networks that
    were trained on rolling windows (Rolling Forcing, arXiv:2509.25161). Those that are written see
    no frames in work, so that what is kept of them does not depend on these."""
    weight: float = 1.0
    """What a frame of the ring weighs: the log of it is added to the scores of its keys. Less than
    1 and the past is followed less, so that errors add up less (Krea realtime: .3)."""
    packed: tuple[int, ...] | list[int] = ()
    """Latent frames of further rings. What leaves the ring is kept in the first of them, what
    leaves that in the second, as means of the keys and values of patches; each counts as often as
    its patch has tokens, and as `weight` says (FramePack, arXiv:2504.12626, has 2 frames in patches
    twice as wide and 16 four times, with networks that were trained so; FAR, arXiv:2503.19325).
    Keys are averaged with their positions, which takes fine ones away."""
    patches: tuple[int, ...] | list[int] = ()
    """How many rows and columns of tokens a patch of each of these rings has."""

    def __post_init__(self):
        object.__setattr__(self, "packed", tuple(self.packed))
        object.__setattr__(self, "patches", tuple(self.patches))

    @property
    def held(self) -> int:
        """Latent frames that are kept in all, whole or packed."""
        return self.frames + sum(self.packed)

    def init(self, grid: TokenGrid) -> KVCache:
        """Returns an empty cache."""
        if not 0 <= self.weight < math.inf:
            what, why = f"frames of a cache weigh {self.weight}", "1 is as much as any other"
            raise ConfigError(what, why, "use 0, which hides them, or more")
        if self.block < 1 or min(self.sink, self.pinned) < 0 or self._ring < self.block:
            raise ConfigError(
                f"a cache of {self.frames} latent frames, {self.sink} of them a sink and "
                f"{self.pinned} pinned, in blocks of {self.block}",
                "a block has a frame or more, the ring behind sink and pinned ones a whole block",
                "use a larger cache, a smaller sink or fewer that are pinned",
            )
        return KVCache.empty(grid, self.frames, self._packed_of(grid))

    def _packed_of(self, grid: TokenGrid) -> tuple[PackedFrames, ...]:
        """Returns the empty rings of packed frames."""
        sizes = (1, *self.patches)
        whole = all(
            size > 0 and not any(of % size for of in (grid.height, grid.width)) for size in sizes
        )
        reasons = {
            "a ring has a number of frames and a patch": len(self.packed) == len(self.patches),
            "a ring has a frame or more": min(self.packed, default=1) > 0,
            f"patches divide a frame of {grid.height} x {grid.width} tokens": whole,
            "each patch is a multiple of those of the ring before": whole
            and not any(large % small for small, large in itertools.pairwise(sizes)),
            "only keys that have their positions can be averaged": self.rotary == "write"
            or not self.packed,
        }
        for why, holds in reasons.items():
            if not holds:
                raise ConfigError(
                    f"a cache of {self.packed} packed latent frames in patches of {self.patches}, "
                    f"whose keys get their positions by {self.rotary}",
                    why,
                    "as --sampling.policy.rotary write --sampling.policy.packed 2,16 "
                    "--sampling.policy.patches 2,4",
                )
        pairs = zip(self.packed, self.patches, strict=True)
        return tuple(PackedFrames.empty(grid, *pair) for pair in pairs)

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
        places = state.places.at[mine].set(state.places[there.argmax(1)])
        return dataclasses.replace(
            state, k=put(state.k), v=put(state.v), frames=held, places=places
        )

    def positions(
        self, positions: Float[Array, " W"], row: Row, state: KVCache
    ) -> Float[Array, " W"]:
        """Returns absolute places, with all jumps before them, or those behind the cache."""
        first = row.frame + (state.jump if self.rotary == "write" else -self._moved(state, row))
        return (first + jnp.arange(len(positions))).astype(jnp.float32)

    def attend(self, q, k, v, state: KVCache, call: AttentionCall, among: Among):
        """Attends to all that is seen, or to parts that weigh otherwise, and joins them."""
        past, masks = self._past(state, call)
        keys, made = self._made(k, v, call)
        if self.weight == 1 and not self.packed:
            return among(q, keys, v, masks[0], past=past), made
        parts: list[Any] = [((keys, v), past, 0.0)]
        less = math.log(self.weight) if self.weight else -math.inf
        if self.weight != 1:
            ends = np.multiply((self.sink + self.pinned, self.frames), call.grid.tokens_per_frame)
            whole = past.before(keys, v, 1)
            first, ring, window = zip(*(jnp.split(x, ends, 1) for x in whole), strict=True)
            near = tuple(jnp.concatenate(pair, 1) for pair in zip(first, window, strict=True))
            parts = [(near, None, 0.0), (ring, None, less)]
        for ring, patch in zip(state.older, self.patches, strict=True):
            parts.append((ring.tokens(), None, less + 2 * math.log(patch)))
        found = [
            (*among(q, *own, seen, return_lse=True, past=before), more)
            for (own, before, more), seen in zip(parts, masks, strict=True)
        ]
        out, lse, _ = found[0]
        for other, other_lse, more in found[1:]:
            out, lse = merge(out, lse, other, other_lse + more)
        return out, made

    def attended(self, q, k, v, state: KVCache, call: AttentionCall):
        """Puts the cache before the window, whose own keys and values are handed on."""
        past, masks = self._past(state, call)
        keys, made = self._made(k, v, call)
        return *past.before(keys, v, masks[0].mask.block_kv), masks[0].mask, made

    def _made(self, k: Array, v: Array, call: AttentionCall) -> tuple[Array, Made]:
        """Returns the keys of a window with positions, and what of it a cache keeps."""
        turned, kind = call.turn(k), jnp.dtype(call.grid.dtype)
        return turned, Made((k if self.rotary == "read" else turned).astype(kind), v.astype(kind))

    def _past(self, state: KVCache, call: AttentionCall) -> tuple[Past, tuple[Prepared, ...]]:
        """Returns the keys and values that the cache of a layer has, and the masks of all keys."""
        call = told(self, state, call)
        (k, v, masks), layer = call.common, call.layer
        if self.rotary == "read":
            places = self._places(state, call.row)
            own = call.turn(jax.lax.dynamic_index_in_dim(k, layer, keepdims=False), places)
            v = jax.lax.dynamic_index_in_dim(v, layer)
            k, layer = own[None], jnp.int32(0)
        return Past(k, v, layer), masks

    def joined(self, states: KVCache, made: Made, row: Row) -> KVCache:
        """Writes the frames that the row says, if any, to the caches of all layers."""

        def write(states: KVCache) -> KVCache:
            frames = _frames(row)
            slots = jnp.where(row.write, self.slots(frames), self.frames)
            if self.packed:
                states = self._written(states, made, frames, slots)
            else:
                states = states.write(made.k, made.v, frames, slots)
            if not self.pinned:
                return states
            shot = states.shot[0]
            begins = row.write & (shot >= 0) & (frames >= shot) & (frames < shot + self.pinned)
            pins = jnp.where(begins, self.sink + frames - shot, self.frames)
            return states.write(made.k, made.v, frames, pins)

        if isinstance(row.write, np.ndarray):  # known as the program is traced
            return write(states) if row.write.any() else states
        return jax.lax.cond(jnp.any(row.write), write, lambda states: states, states)

    def _written(
        self, states: KVCache, made: Made, frames: Int[Array, " W"], slots: Int[Array, " W"]
    ) -> KVCache:
        """Writes frames one by one; what was in their slots is packed before."""

        def handed(state: KVCache, frame: Array, slot: Array) -> KVCache:
            gone = state.frames.at[slot].get(mode="fill", fill_value=EMPTY)
            gone = jnp.where(gone == frame, EMPTY, gone)
            rows, columns = np.multiply(state.older[0].k.shape[2:4], self.patches[0])
            k, v = (x.at[:, slot].get(mode="clip") for x in (state.k, state.v))
            k, v = (x.reshape(x.shape[0], rows, columns, *x.shape[2:]) for x in (k, v))
            older = handed_down(state.older, k, v, gone, self.sink)
            return dataclasses.replace(state, older=older)

        def one(at: Array, states: KVCache) -> KVCache:
            size = states.k.shape[3]
            k, v = (jax.lax.dynamic_slice_in_dim(x, at * size, size, 2) for x in made)
            states = jax.vmap(handed, (0, None, None))(states, frames[at], slots[at])
            return states.write(k, v, frames[at][None], slots[at][None])

        return jax.lax.fori_loop(0, len(frames), one, states)

    def select(self, q, k, v, state: KVCache, call: AttentionCall):
        """Returns the mask, which is that of all layers."""
        return self._past(state, call)[1][0].mask, state

    def common(self, states: KVCache, row: Row, grid: TokenGrid) -> Kept:
        """Returns the keys and values of all layers, and who sees which.

        Of the keys of cache and window those in time and of no later block are allowed.
        A frame is read from the cache until `_front`, from the window after, and a pinned one from
        the ring as long as it is there. What weighs otherwise has a mask of its own: the ring,
        and each of those of packed frames, which are read where they are not kept whole.
        """
        state = jax.tree.map(lambda leaf: leaf[0], states)
        k, v = (x.reshape(*x.shape[:2], -1, *x.shape[4:]) for x in (states.k, states.v))
        frames, front = _frames(row), self._front(state, row)
        twice = self._is_pinned & (
            state.frames[:, None] == state.frames[None, ~self._is_pinned]
        ).any(1)
        held = (state.frames >= 0) & (state.frames < front) & ~twice
        block = frames // self.block
        time = block - block[0]  # of frames of the window; what is cached is before all of them
        time = jnp.where(row.write, time, len(frames)) if self.free else time
        keys = jnp.where(frames < front, NEVER, time)
        before, size, masks = jnp.where(held, 0, NEVER), grid.tokens_per_frame, []
        if self.weight == 1:
            masks.append(times_mask(time, keys, size, before=before))
        else:
            first, ring = jnp.split(before, (self.sink + self.pinned,))
            masks += [times_mask(time, jnp.concatenate([first, keys]), size)]
            masks += [times_mask(time, ring, size)]
        for ring, patch in zip(state.older, self.patches, strict=True):
            whole = (ring.frames[:, None] == state.frames[None]).any(1)
            seen = (ring.frames >= 0) & (ring.frames < front) & ~whole
            masks.append(times_mask(time, jnp.where(seen, 0, NEVER), size, size // patch**2))
        seen = [Prepared(mask) for mask in masks]
        if self.weight == 1:
            heads = (grid.batch, grid.tokens, grid.heads, grid.head_dim)
            past = Past(k, v, jnp.int32(0))
            seen[0] = prepared(jax.ShapeDtypeStruct(heads, grid.dtype), past, masks[0])
        return Kept(k, v, tuple(seen))

    @property
    def _is_pinned(self) -> np.ndarray:
        slots = np.arange(self.frames)
        return (slots >= self.sink) & (slots < self.sink + self.pinned)

    def _places(self, state: KVCache, row: Row) -> Float[Array, " S"]:
        """Returns where cached frames stand when they are read: sink, pinned ones, ring.

        The window does not move: what was before a cut is that much earlier, as long as the ring
        has some of it.
        """
        moved = self._moved(state, row)
        moved = state.frames - jnp.where(state.frames < self.sink, 0, moved)
        pinned = jnp.minimum(state.frames, np.arange(self.frames))
        back = state.jump + state.frames - state.places
        ring = (state.frames >= 0) & (np.arange(self.frames) >= self.sink + self.pinned)
        back = jnp.minimum(back, jnp.where(ring, back, 0).max())
        return (jnp.where(self._is_pinned, pinned, moved) - back).astype(jnp.float32)

    def _moved(self, state: KVCache, row: Row) -> Int[Array, ""]:
        """Returns by how many places the ring and the window have moved up."""
        if self.rotary == "write":
            return jnp.zeros((), jnp.int32)
        return jnp.maximum(self._front(state, row) - self.frames, 0)

    def _front(self, state: KVCache, row: Row) -> Int[Array, ""]:
        """Returns the first frame that is not read from the cache: that of the window, mostly.

        At the end of a clip windows do not move on, and begin with finished frames. In the cache
        these still know what they saw; in the window they would see what is left of it.
        """
        if row.moving is None:
            return jnp.asarray(row.frame)
        rests = jnp.cumprod(~row.moving & ~row.write).astype(bool)
        held = (state.frames[None] == _frames(row)[:, None]).any(1)
        return row.frame + jnp.max(jnp.where(rests & held, 1 + jnp.arange(len(held)), 0))


def told(policy: Policy, state: PyTree, call: AttentionCall) -> AttentionCall:
    """Returns a call with what all layers share, that of a layer by itself if it was told none."""
    if call.common is not None:
        return call
    states = jax.tree.map(lambda leaf: leaf[None], state)
    common = policy.common(states, call.row, call.grid)
    return call._replace(layer=jnp.int32(0), common=common)


def _frames(row: Row) -> Int[Array, " W"]:
    """Returns the absolute index of every frame of a window."""
    return row.frame + jnp.arange(len(row.write), dtype=jnp.int32)


def times_mask(
    q: Int[Array, " W"],
    kv: Int[Array, " K"],
    per_frame: int,
    per_key: int | None = None,
    before: Int[Array, " S"] | None = None,
) -> BlockMask:
    """Returns the mask of frames that see those whose time is not after theirs.

    Frames have `per_frame` queries, and `per_key` keys, or as many. Blocks are frames where these
    are small; else what kernels like best, and times decide where a block has tokens of several
    frames. Keys of frames `before`, which are elsewhere (`Past`), fill whole blocks.
    """
    per_key = per_key or per_frame
    parts = (kv,) if before is None else (before, kv)
    if per_frame <= LARGEST // 2:
        whole = jnp.concatenate(parts)
        sizes: Any = {"q_len": len(q) * per_frame, "kv_len": len(whole) * per_key}
        sizes |= {"block_q": per_frame, "block_kv": per_key}
        return BlockMask.from_dense((q[:, None] >= whole[None])[None, None], **sizes)

    def placed(times: Array, size: int) -> tuple[Array, Array, Array]:
        """Places of tokens, and the first and last time of each block."""
        tokens = np.arange(len(times) * size) // size
        starts = np.arange(0, len(tokens), LARGEST)
        first, last = (reduce.reduceat(tokens, starts) for reduce in (np.minimum, np.maximum))
        frames = np.arange(len(times))
        within = (frames >= first[:, None]) & (frames <= last[:, None])
        of_blocks = jnp.where(within, times[None], NEVER), jnp.where(within, times[None], -1)
        coords = jnp.where(times < NEVER, times << TIME_BITS, -1)
        return jnp.repeat(coords, size), of_blocks[0].min(1), of_blocks[1].max(1)

    def filled(coords: Array, first: Array, last: Array) -> tuple[Array, Array, Array]:
        """The same up to the end of the last block, of which nobody sees what fills it."""
        short = -len(coords) % LARGEST
        last = last.at[-1].set(NEVER) if short else last
        return jnp.pad(coords, (0, short), constant_values=-1), first, last

    q_coords, oldest, newest = placed(q, per_frame)
    keys = [placed(times, per_key) for times in parts]
    keys[:-1] = [filled(*of) for of in keys[:-1]]
    kv_coords, first, last = (jnp.concatenate(of) for of in zip(*keys, strict=True))
    listed, partial = newest[:, None] >= first[None], oldest[:, None] < last[None]
    return BlockMask.from_dense(
        listed[None, None],
        partial[None, None],
        q_len=len(q_coords),
        kv_len=len(kv_coords),
        q_coords=q_coords[None],
        kv_coords=kv_coords[None],
        causal_time=True,
    )
