"""Attention within windows that are long in time and small in space, and shift in odd layers."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jvdm.arrays import Array, Float
from jvdm.attention.policy import Among, AttentionCall, Policy
from jvdm.errors import ConfigError
from jvdm.parallel.exchange import by_heads

AT_ONCE = 512  # windows whose scores are in memory together
Sides = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class TemporalSwin(Policy):
    """LinGen's TE branch: windows part the grid, and move by half of their sides in odd layers.

    The window is the same at every size, so that the cost is linear in tokens. Where it is as long
    as a side of the grid it does not move along it. Frames of a call that are clean, noisy or
    given are all read, as by full attention.

    Reference: LinGen, arXiv:2412.09856, with the shifts of Swin, arXiv:2103.14030; the sizes are
    ours.
    """

    window: Sequence[int] = (8, 4, 4)
    """Latent frames, rows and columns of tokens."""

    def __post_init__(self) -> None:
        """Makes a tuple of the sides.

        Raises:
            ConfigError: If there are not three, or one has no token.
        """
        object.__setattr__(self, "window", tuple(self.window))
        if len(self.window) != 3 or min(self.window) < 1:
            what = f"windows of {' x '.join(map(str, self.window))} tokens"
            why = "there are three sides, and every one has at least one token"
            raise ConfigError(what, why, "use sides of 1 and more, as 8 4 4")

    def select(self, q, k, v, state, call: AttentionCall):
        """Is not asked: windows are attended to one by one."""
        raise AssertionError("TemporalSwin attends by itself")

    def attend(self, q, k, v, state, call: AttentionCall, among: Among):
        """Attends within windows; what a window has beyond the grid is never read."""
        grid, length = call.grid, q.shape[1]
        if length != grid.tokens or k.shape[1] != length:
            what = f"windows among {length} of {grid.tokens} tokens"
            raise ConfigError(what, "they part a whole grid", "use another policy, or all tokens")
        sides = (grid.frames, grid.height, grid.width)
        shift = tuple(
            (call.layer % 2) * (half // 2) * (half < side)
            for half, side in zip(self.window, sides, strict=True)
        )

        def body(tokens: tuple, common: tuple, heads: tuple, shift: tuple) -> Array:
            return windowed(*tokens, sides=sides, window=self.window, shift=shift)

        return by_heads(body, (q, call.turn(k), v), whole=shift), state


def windowed(
    q: Float[Array, "B L N D"],
    k: Float[Array, "B L N D"],
    v: Float[Array, "B L N D"],
    *,
    sides: Sides,
    window: Sequence[int],
    shift: Sequence[Any],
) -> Float[Array, "B L N D"]:
    """Returns attention among the tokens whose `(place + shift) // window` is the same.

    Args:
        q: Queries of a grid in raster order.
        k: Keys, with their positions.
        v: Values.
        sides: Frames, rows and columns of the grid.
        window: Those of a window.
        shift: By how much windows begin before the grid, each less than its side; i32[] or int.
    """
    counts = tuple(-(-side // part) for side, part in zip(sides, window, strict=True))
    whole = tuple(count * part for count, part in zip(counts, window, strict=True))

    moved = jnp.stack([jnp.asarray(by) for by in shift])

    def parted(x: Array) -> Array:
        """Returns `[W, B, T, ...]`: tokens by window, the grid turned so that windows are boxes."""
        x = x.reshape(x.shape[0], *sides, *x.shape[2:])
        ends = [(0, size - side) for size, side in zip(whole, sides, strict=True)]
        x = jnp.roll(jnp.pad(x, [(0, 0), *ends, (0, 0), (0, 0)]), moved, (1, 2, 3))
        split = [size for pair in zip(counts, window, strict=True) for size in pair]
        x = x.reshape(x.shape[0], *split, *x.shape[4:])
        x = jnp.moveaxis(x, (1, 3, 5), (0, 1, 2))
        return x.reshape(math.prod(counts), x.shape[3], math.prod(window), *x.shape[7:])

    def joined(x: Array) -> Array:
        x = x.reshape(*counts, x.shape[1], *window, *x.shape[3:])
        x = jnp.moveaxis(x, (0, 1, 2), (1, 3, 5)).reshape(x.shape[3], *whole, *x.shape[7:])
        x = jnp.roll(x, -moved, (1, 2, 3))
        return x[:, : sides[0], : sides[1], : sides[2]].reshape(q.shape)

    # The number of the window of every token, 0 beyond the grid; what was turned to another end
    # of the grid has another one than its neighbours there.
    many = max(counts) + 2
    frame, row, column = (
        (jnp.arange(side) + by) // part for side, part, by in zip(sides, window, shift, strict=True)
    )
    number = frame[:, None, None] * many + row[None, :, None]
    number = number * many + column[None, None] + 1
    numbers = parted(number.reshape(1, -1, 1, 1))[:, 0, :, 0, 0]

    @jax.checkpoint
    def one(given: tuple[Array, ...]) -> Array:
        q, k, v, number = given
        scores = jnp.einsum("bqnd,bknd->bnqk", q, k, preferred_element_type=jnp.float32)
        same = number[:, None] == number[None]
        scores = jnp.where(same[None, None], scores / math.sqrt(q.shape[-1]), -1e30)
        shares = jax.nn.softmax(scores, -1).astype(v.dtype)
        return jnp.einsum("bnqk,bknd->bqnd", shares, v)

    given = (parted(q), parted(k), parted(v), numbers)
    return joined(jax.lax.map(one, given, batch_size=min(AT_ONCE, math.prod(counts))))
