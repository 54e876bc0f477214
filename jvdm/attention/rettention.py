"""Re-ttention: what a full row of attention said of the keys that are left out is remembered."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

from jvdm.arrays import Array, Float
from jvdm.attention.blocks import Blocks, blocks_of
from jvdm.attention.patterns import box
from jvdm.attention.policy import Among, AttentionCall, Policy, TokenGrid
from jvdm.attention.tally import Tally
from jvdm.attention.window import Window
from jvdm.errors import ConfigError


class Remembered(NamedTuple):
    """What a layer remembers from its last full row.

    Attributes:
        tally: What was done.
        share: f32[B, N, L], share of a query's softmax that lay on the keys that are listed.
        rest: `[B, L, N, D]`, attended values of the keys that are not.
    """

    tally: Tally
    share: Float[Array, "B N L"]
    rest: Float[Array, "B L N D"]


@dataclasses.dataclass(frozen=True)
class Rettention(Window):
    """Very sparse attention with the softmax statistics of full attention (arXiv:2505.22918).

    A refreshing row attends in full, and among the listed blocks; the ratio of the two softmax
    sums is `share`, and `rest = full - share * listed`. The rows after it attend to listed blocks
    alone and return `share * listed + rest`; the share grows by `ramp` in each. Listed are the same
    patches of all frames and those around them.

    What is ours: the rest is taken before the output projection, where theirs is taken after it:
    the same, since the projection is linear and its bias cancels. The share is kept to 1 at most.
    """

    density: float = 0.25
    dense_rows: float = 0.3
    period: int = 5
    """Rows from one refreshing row to the next."""
    ramp: float = 0.04
    """Added to the share in every row that does not refresh it."""
    statistics: bool = True
    """Whether the share and the rest are used; without them listed blocks are renormalised."""
    refreshes: bool = True
    """Whether a call refreshes."""

    def __post_init__(self) -> None:
        """Raises `ConfigError` for a field that is out of range."""
        super().__post_init__()
        if self.period < 1:
            raise ConfigError(f"period is {self.period}", "it is a number of rows, 1 or more")
        if not 0 <= self.ramp <= 1:
            raise ConfigError(f"ramp is {self.ramp:g}", "it must be from 0 to 1")

    def phases(self, num_rows: int) -> tuple[tuple[str, int], ...]:
        """Dense rows, then one that refreshes and some that do not, again and again."""
        first = min(round(self.dense_rows * num_rows), num_rows)
        parts = [("dense", first)]
        for row in range(first, num_rows, self.period):
            parts += [("refresh", 1), ("sparse", min(self.period, num_rows - row) - 1)]
        return tuple(part for part in parts if part[1])

    def in_phase(self, name: str) -> Policy:
        """Returns what the rows of a phase do."""
        if name == "dense":
            return self._dense()
        return dataclasses.replace(self, refreshes=name == "refresh")

    def window(self, blocks: Blocks) -> tuple[int, int, int]:
        """Returns a window over all frames.

        Raises:
            ConfigError: If one patch in all frames is more than the density allows.
        """
        found = box(blocks.tiles, self.listed(blocks), blocks.tiles[0])
        if found is None:
            raise ConfigError(
                f"the same patch of {blocks.tiles[0]} latent frames at density {self.density:g}",
                f"the density allows {self.listed(blocks)} of {blocks.count} blocks",
                "use a larger density, or smaller blocks",
            )
        return found

    def init(self, grid: TokenGrid) -> Remembered:
        """Checks the grid; before the first refresh all of the softmax is on what is listed."""
        super().init(grid)
        blocks = blocks_of(grid, self.block)
        if not self.is_dense:
            self.window(blocks)
        slots = blocks.slots
        rest = jnp.zeros((grid.batch, slots, grid.heads, grid.head_dim), grid.dtype)
        return Remembered(Tally.empty(), jnp.ones((grid.batch, grid.heads, slots)), rest)

    def attend(self, q, k, v, state: Remembered, call: AttentionCall, among: Among):
        """Attends in full and remembers, or among listed blocks with what is remembered."""
        k = call.turn(k)
        if self.is_dense:
            return among(q, k, v, None), state._replace(tally=state.tally.add(1.0, 1.0, dense=True))
        mask, tally = self.select(q, k, v, state.tally, call)
        if not self.refreshes:
            some = among(q, k, v, mask)
            if not self.statistics:
                return some, state._replace(tally=tally)
            share = jnp.moveaxis(state.share, 1, 2)[..., None]
            share_next = jnp.minimum(state.share + self.ramp, 1.0)
            out = (share * some.astype(jnp.float32) + state.rest).astype(v.dtype)
            return out, Remembered(tally, share_next, state.rest)
        everything = blocks_of(call.grid, self.block).everything()
        some, some_lse = among(q, k, v, mask, return_lse=True)
        full, full_lse = among(q, k, v, everything, return_lse=True)
        share = jnp.minimum(jnp.exp(some_lse - full_lse), 1.0)
        spread = jnp.moveaxis(share, 1, 2)[..., None]
        rest = (full.astype(jnp.float32) - spread * some.astype(jnp.float32)).astype(v.dtype)
        return full, Remembered(state.tally.add(1.0, 1.0, dense=True), share, rest)
