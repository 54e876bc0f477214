"""A cache of keys and values for each noise level: a frame reads the past as it was at its own."""

import dataclasses
import typing

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Bool, Float, Int
from jvdm.attention.cached_causal import NEVER, Made, times_mask, told
from jvdm.attention.packed_frames import EMPTY
from jvdm.attention.policy import Among, AttentionCall, Policy, TokenGrid
from jvdm.errors import ConfigError
from jvdm.samplers import Row
from pallas_kernels import BlockMask


@typing.no_type_check
@flax.struct.dataclass
class Bank:
    """Keys and values of whole latent frames at every level, one frame a slot.

    Attributes:
        k: `[B, V, S, P, N, D]`, keys without positions of `V` levels and `S` slots of `P` tokens.
        v: `[B, V, S, P, N, D]`, values.
        frames: i32[B, V, S], absolute index of the frame in each slot, -1 where there is none.
    """

    k: Float[Array, "B V S P N D"]
    v: Float[Array, "B V S P N D"]
    frames: Int[Array, "B V S"]

    def forget(self, first: int | Int[Array, ""], last: int | Int[Array, ""]) -> "Bank":
        """Returns the bank without the frames from `first` to before `last`, at all levels."""
        gone = (self.frames >= first) & (self.frames < last)
        return dataclasses.replace(self, frames=jnp.where(gone, EMPTY, self.frames))


@dataclasses.dataclass(frozen=True)
class LevelBank(Policy):
    """Frames attend to earlier ones at their own noise level, whose keys were kept there.

    For matrices that write every frame at every level that it passes (`cached_by_level`): frames in
    work do not see each other, they lie side by side in the batch, one for each level, and read the
    cache of their own. No call writes what is finished. The result is that of one synchronous run
    with `FrameCausal`, as long as no frame has been overwritten. Keys turn when they are read: the
    ring stands just before the frame that reads it, the sink before the ring, so that places stay
    small for ever. Of a solver of two evaluations the second is kept.

    Where a scene ends, a sink shows what is no longer there. So a frame takes the place of the
    sink's least similar one, in the cache of its level, if their average similarity is small.

    Reference: StreamDiffusionV2, arXiv:2511.07399: caches of 6 latent frames, 3 of them the sink,
    similarity below .2. Theirs turns keys when they are written, and begins to count anew at frame
    50, where the ring still stands at 47 to 49.
    """

    levels: int = 4
    """Levels that have a cache: the steps of the run."""
    frames: int = 6
    """Latent frames that each holds."""
    sink: int = 3
    """How many of them are the first of the video, until they are refreshed."""
    refresh: float = 0.2
    """Average cosine of keys and values, meant over the tokens of a frame, of a new frame with
    those of the sink, below which the least similar of them is overwritten; -1 never does it."""

    @property
    def banks(self) -> int:
        """Levels that it keeps frames of apart."""
        return self.levels

    def init(self, grid: TokenGrid) -> Bank:
        """Returns an empty bank."""
        if self.levels < 1 or self.sink < 0 or self.frames <= self.sink:
            raise ConfigError(
                f"a cache of {self.frames} latent frames, {self.sink} of them a sink, for each of "
                f"{self.levels} levels",
                "a run has a level or more, and the ring behind the sink a frame or more",
                "use a larger cache or a smaller sink",
            )
        if not -1 <= self.refresh <= 1:
            what, why = f"a sink is refreshed below {self.refresh}", "cosines are from -1 to 1"
            raise ConfigError(what, why, "use .2, or -1 to keep the first frames for ever")
        sizes = (grid.batch, self.levels, self.frames)
        tokens = jnp.zeros((*sizes, grid.tokens_per_frame, grid.heads, grid.head_dim), grid.dtype)
        return Bank(tokens, tokens, jnp.full(sizes, EMPTY, jnp.int32))

    def slots(self, frames: Int[Array | np.ndarray, " W"]) -> Int[Array, " W"]:
        """Returns the slot of each frame: a sink is its own, the others go round in the ring."""
        ring = self.sink + (frames - self.sink) % (self.frames - self.sink)
        return jnp.where(frames < self.sink, frames, ring)

    def positions(self, positions: Float[Array, " W"], row: Row, state: Bank) -> Float[Array, " W"]:
        """Returns the places of frames: absolute ones until the cache is full, then behind it."""
        return jnp.minimum(_frames(row, len(positions)), self.frames).astype(jnp.float32)

    def common(self, states: Bank, row: Row, grid: TokenGrid) -> BlockMask:
        """Allows earlier frames of the own cache, and the frame itself, for each by itself.

        A frame of the sink is read from the ring as long as it is there. All layers hold the same.
        """
        state = jax.tree.map(lambda leaf: leaf[0], states)
        window, level = grid.frames, self._levels(row, grid.frames)
        held, frames = state.frames[:, level], _frames(row, window)
        known = (held >= 0) & (held < frames[None, :, None])
        sink, ring = jnp.split(jnp.where(known, held, EMPTY), (self.sink,), 2)
        twice = (sink[..., None] == ring[:, :, None]).any(3)
        known = known.at[:, :, : self.sink].set(known[:, :, : self.sink] & ~twice)
        times = jnp.where(known, 0, NEVER).reshape(-1, self.frames)
        times = jnp.pad(times, ((0, 0), (0, 1)))  # the frame itself
        now = jnp.zeros(1, jnp.int32)
        masks = jax.vmap(lambda kv: times_mask(now, kv, grid.tokens_per_frame))(times)
        return jax.tree.map(lambda leaf: leaf[:, 0], masks)

    def select(self, q, k, v, state: Bank, call: AttentionCall):
        """Returns the mask, which is that of all layers."""
        return told(self, state, call).common, state

    def attend(self, q, k, v, state: Bank, call: AttentionCall, among: Among):
        """Lets every frame attend to the cache of its level and to itself, all in one batch."""
        window, level = call.grid.frames, self._levels(call.row, call.grid.frames)
        slots = np.arange(self.frames)
        moved = jnp.maximum(_frames(call.row, window) - self.frames, 0)[:, None]
        places = jnp.where(slots < self.sink, slots, state.frames[0, level] - moved)

        def side_by_side(x: Array) -> Array:
            return x.reshape(-1, x.shape[1] // window, *x.shape[2:])

        def of_levels(x: Array) -> Array:
            mine = x[:, level]
            return mine.reshape(*mine.shape[:2], -1, *mine.shape[4:])

        past = jax.vmap(call.turn, (1, 0), 1)(of_levels(state.k), places.astype(jnp.float32))
        keys, values = (
            jnp.concatenate([kept.reshape(-1, *kept.shape[2:]), side_by_side(own)], 1)
            for kept, own in ((past, call.turn(k)), (of_levels(state.v), v))
        )
        mask, _ = self.select(q, keys, values, state, call)
        out = among(side_by_side(q), keys, values, mask)
        kind = state.k.dtype
        return out.reshape(q.shape), Made(k.astype(kind), v.astype(kind))

    def joined(self, states: Bank, made: Made, row: Row) -> Bank:
        """Writes what the row says to the caches of its levels, in all layers."""

        def write(states: Bank) -> Bank:
            depth, batch, _, _, tokens = states.k.shape[:5]
            window = len(row.write)
            level, frames = self._levels(row, window), _frames(row, window)
            k, v = (x.reshape(depth, batch, window, tokens, *x.shape[3:]) for x in made)
            slots = jnp.where(row.write, self.slots(frames), self.frames)
            places = [jnp.broadcast_to(slots, (batch, window))]
            if self.sink and self.refresh > -1:
                places.append(self._refreshed(states, Made(k, v), level, row))
            rows = jnp.arange(batch)[:, None]
            for slot in places:
                at = (slice(None), rows, level[None], slot)
                states = Bank(
                    states.k.at[at].set(k, mode="drop"),
                    states.v.at[at].set(v, mode="drop"),
                    states.frames.at[at].set(frames, mode="drop"),
                )
            return states

        return jax.lax.cond(jnp.any(row.write), write, lambda states: states, states)

    def _refreshed(
        self, states: Bank, made: Made, level: Int[Array, " W"], row: Row
    ) -> Int[Array, "B W"]:
        """Returns which slot of the sink each frame overwrites, none that is not below `S`.

        Layers decide together, samples apart, once the sink is full of other frames.
        """

        def alike(kept: Array, new: Array) -> Array:
            sink = kept[:, :, level, : self.sink].astype(jnp.float32).mean(4)
            return cosines(sink, new.astype(jnp.float32).mean(3)[:, :, :, None]).mean(0)

        likeness = (alike(states.k, made.k) + alike(states.v, made.v)) / 2
        frames, held = _frames(row, len(level)), states.frames[0][:, level, : self.sink]
        others = ((held >= 0) & (held != frames[None, :, None])).all(2)
        may = others & (row.write & (frames >= self.sink))[None]
        return replaced(likeness, self.refresh, may, self.frames)

    def _levels(self, row: Row, window: int) -> Int[Array, " W"]:
        """Returns the level of each frame; those that are finished stand at the last one."""
        level = jnp.zeros(window, jnp.int32) if row.level is None else row.level
        return jnp.clip(level, 0, self.levels - 1)


def cosines(a: Float[Array, "*n N D"], b: Float[Array, "*m N D"]) -> Float[Array, "*k"]:
    """Returns cosines of the angles between vectors of all heads together; 0 with one of zeros."""
    product, *squares = (jnp.sum(x * y, (-2, -1)) for x, y in ((a, b), (a, a), (b, b)))
    return product / jnp.sqrt(jnp.maximum(squares[0] * squares[1], 1e-30))


def replaced(
    likeness: Float[Array, "*n slots"], below: float, may: Bool[Array, "*n"], none: int
) -> Int[Array, "*n"]:
    """Returns which slot of a sink a frame overwrites: the least similar one, if the sink differs.

    Args:
        likeness: Cosines of the frame with those of the sink.
        below: Their mean below which one is overwritten.
        may: Whether any may be.
        none: What is returned where none is.

    Reference: StreamDiffusionV2, arXiv:2511.07399 (.2).
    """
    return jnp.where(may & (likeness.mean(-1) < below), likeness.argmin(-1), none)


def _frames(row: Row, window: int) -> Int[Array, " W"]:
    return row.frame + jnp.arange(window, dtype=jnp.int32)
