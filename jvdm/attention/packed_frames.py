"""Frames of a cache that are older than its ring: one key and one value for a patch of tokens."""

import dataclasses
import typing

import flax.struct
import jax.numpy as jnp

from jvdm.arrays import Array, Float, Int
from jvdm.attention.policy import TokenGrid

EMPTY = -1  # frame of a slot that holds none


@typing.no_type_check
@flax.struct.dataclass
class PackedFrames:
    """Mean keys and values of the patches of whole latent frames, one frame a slot.

    `H W` count patches, and `S` slots.

    Attributes:
        k: `[B, S, H, W, N, D]`, keys, which had their positions.
        v: `[B, S, H, W, N, D]`, values.
        frames: i32[S], absolute index of the frame in each slot, -1 where there is none.
    """

    k: Float[Array, "B S H W N D"]
    v: Float[Array, "B S H W N D"]
    frames: Int[Array, " S"]

    @classmethod
    def empty(cls, grid: TokenGrid, slots: int, patch: int) -> "PackedFrames":
        """Returns slots without frames, for patches of `patch` rows and columns of tokens."""
        size = (grid.height // patch, grid.width // patch)
        nothing = jnp.zeros((grid.batch, slots, *size, grid.heads, grid.head_dim), grid.dtype)
        return cls(nothing, nothing, jnp.full(slots, EMPTY, jnp.int32))

    def forget(self, first: int | Int[Array, ""], last: int | Int[Array, ""]) -> "PackedFrames":
        """Returns the slots without the frames from `first` to before `last`."""
        gone = (self.frames >= first) & (self.frames < last)
        return dataclasses.replace(self, frames=jnp.where(gone, EMPTY, self.frames))

    def tokens(self) -> tuple[Float[Array, "B L N D"], Float[Array, "B L N D"]]:
        """Returns keys and values of all slots, one after the other."""
        k, v = (x.reshape(x.shape[0], -1, *x.shape[-2:]) for x in (self.k, self.v))
        return k, v


def handed_down(
    rings: tuple[PackedFrames, ...],
    k: Float[Array, "B H W N D"],
    v: Float[Array, "B H W N D"],
    frame: Int[Array, ""],
    first: int,
) -> tuple[PackedFrames, ...]:
    """Puts a frame into the first of some rings, what was there into the next, and so on.

    Args:
        rings: From small patches to large ones, each a multiple of those before.
        k: Keys of the tokens of the frame, with their positions.
        v: Their values.
        frame: Its absolute index; -1 is none, and nothing changes.
        first: The first frame that can be in a ring.
    """
    done = []
    for ring in rings:
        slots = ring.frames.shape[0]
        slot = jnp.where(frame >= 0, (frame - first) % slots, slots)
        gone = ring.frames.at[slot].get(mode="fill", fill_value=EMPTY)
        gone = jnp.where(gone == frame, EMPTY, gone)
        old = [x.at[:, slot].get(mode="clip") for x in (ring.k, ring.v)]
        whole = (_mean(x, *ring.k.shape[2:4]).astype(ring.k.dtype) for x in (k, v))
        put = [
            x.at[:, slot].set(new, mode="drop")
            for x, new in zip((ring.k, ring.v), whole, strict=True)
        ]
        frames = ring.frames.at[slot].set(frame, mode="drop")
        done.append(dataclasses.replace(ring, k=put[0], v=put[1], frames=frames))
        k, v, frame = *old, gone
    return tuple(done)


def _mean(x: Float[Array, "B H W N D"], height: int, width: int) -> Float[Array, "B h w N D"]:
    """Averages over patches, so that `height` rows of `width` are left."""
    rows, columns = x.shape[1] // height, x.shape[2] // width
    parts = x.reshape(x.shape[0], height, rows, width, columns, *x.shape[3:])
    return parts.astype(jnp.float32).mean((2, 4))
