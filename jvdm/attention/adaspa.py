"""AdaSpa: the blocks of most attention are searched for rarely, and used again and again."""

import dataclasses
import itertools
from typing import ClassVar, NamedTuple

import jax.numpy as jnp

from jvdm.arrays import Array, Bool, Float
from jvdm.attention.blocks import Blocks, blocks_of
from jvdm.attention.policy import Among, AttentionCall, Policy, TokenGrid
from jvdm.attention.sparse import Sparse
from jvdm.attention.tally import Tally
from jvdm.errors import ConfigError
from pallas_kernels import best_blocks, block_mass

MODES = ("search", "again", "reuse")
GOOD = 0.8  # recall above which a head gives blocks away: the paper's


class Found(NamedTuple):
    """What a layer remembers.

    Attributes:
        tally: What was done.
        lse: f32[B, N, L], log-sum-exp of the queries at the first search.
        listed: bool[B, N, Q, K], blocks found at the last one.
    """

    tally: Tally
    lse: Float[Array, "B N L"]
    listed: Bool[Array, "B N Q K"]


@dataclasses.dataclass(frozen=True)
class AdaSpa(Sparse):
    """Exact search of the best blocks, in few rows of a run (arXiv:2502.21079).

    The last dense row is the first search: its log-sum-exp tells the mass of every block at half of
    the cost of attention again. Later searches use the log-sum-exp of the first, which an offset
    common to a block of queries does not change, and attend with what they find. Every row of a
    head lists equally many blocks; heads whose recall is above .8 give half of theirs to as many of
    the lowest recall.

    What is ours: at most half of the heads give (the paper is silent), recall is of masses that are
    normalised row by row, because an old log-sum-exp does not normalise them, and state is per
    batch row, so that branches of guidance have their own.
    """

    equal: ClassVar[str] = "its search divides the density among heads itself"

    density: float = 0.2
    dense_rows: float = 0.2
    again: tuple[float, ...] | list[float] = (0.6,)
    """Shares of the rows after which blocks are searched again; none never does."""
    by_head: bool = True
    """Whether heads of high recall give blocks to those of low recall."""
    mode: str = "search"
    """What a call does: "search" (and attend densely), search "again", or "reuse"."""

    def __post_init__(self) -> None:
        """Raises `ConfigError` for a field that is out of range."""
        super().__post_init__()
        object.__setattr__(self, "again", tuple(self.again))
        if not all(0 <= share <= 1 for share in self.again):
            raise ConfigError(f"again is {self.again}", "they are shares of the rows, 0 to 1")
        if self.mode not in MODES:
            raise ConfigError(f"mode is {self.mode!r}", f"it is one of {', '.join(MODES)}")

    def phases(self, num_rows: int) -> tuple[tuple[str, int], ...]:
        """Dense rows, the last of which searches; then found blocks, and other searches."""
        first = max(round(self.dense_rows * num_rows), 1)
        later = {max(round(share * num_rows), first) for share in self.again} - {num_rows}
        parts = [("dense", first - 1), ("search", 1)]
        for row, end in itertools.pairwise([first - 1, *sorted(later), num_rows]):
            parts += [("again", 1)] * (row in later) + [("reuse", end - row - 1)]
        return tuple(part for part in parts if part[1])

    def in_phase(self, name: str) -> Policy:
        """Returns what the rows of a phase do."""
        return self._dense() if name == "dense" else dataclasses.replace(self, mode=name)

    def init(self, grid: TokenGrid) -> Found:
        """Checks the grid; nothing is found yet, and each block lists itself."""
        super().init(grid)
        blocks = blocks_of(grid, self.block)
        lse = jnp.zeros((grid.batch, grid.heads, blocks.slots))
        shape = (grid.batch, grid.heads, blocks.count, blocks.count)
        return Found(Tally.empty(), lse, jnp.broadcast_to(jnp.eye(blocks.count, dtype=bool), shape))

    def attend(self, q, k, v, state: Found, call: AttentionCall, among: Among):
        """Attends as the mode says."""
        k = call.turn(k)
        if self.is_dense:
            return among(q, k, v, None), state._replace(tally=state.tally.add(1.0, 1.0, dense=True))
        blocks = blocks_of(call.grid, self.block)
        if self.mode == "search":
            out, lse = among(q, k, v, blocks.everything(), return_lse=True)
            listed = self.searched(q, k, lse, blocks)
            return out, Found(state.tally.add(1.0, 1.0, dense=True), lse, listed)
        listed = state.listed
        if self.mode == "again":
            listed = self.searched(q, k, state.lse, blocks)
        mask = blocks.mask(listed, self.budgets(blocks)[-1])
        tally = self.noted(state.tally, q, k, v, mask, blocks)
        return among(q, k, v, mask), state._replace(tally=tally, listed=listed)

    def budgets(self, blocks: Blocks) -> tuple[int, int, int]:
        """Returns the blocks that rows of giving, of other and of receiving heads list."""
        count = self.listed(blocks)
        given = min(count // 2, blocks.count - count) if self.by_head else 0
        return count - given, count, count + given

    def searched(
        self,
        q: Float[Array, "B L N D"],
        k: Float[Array, "B L N D"],
        lse: Float[Array, "B N L"],
        blocks: Blocks,
    ) -> Bool[Array, "B N Q K"]:
        """Marks the blocks of greatest mass, head by head as many as it may list."""
        lse = jnp.where(blocks.holds[None, None], lse, -jnp.inf)
        lengths = blocks.everything().kv_lengths
        mass = block_mass(q, k, lse, blocks.size, blocks.size, kv_lengths=lengths)
        few, usual, many = (best_blocks(mass, count) for count in self.budgets(blocks))
        kept = jnp.sum(jnp.where(usual, mass, 0), -1) / jnp.maximum(mass.sum(-1), 1e-30)
        recalled = kept.mean(-1)
        good = jnp.sum(recalled > GOOD, 1, keepdims=True)
        giving = jnp.minimum(good, q.shape[2] // 2)
        rank = jnp.argsort(jnp.argsort(-recalled, 1), 1)  # 0 is the head of highest recall
        gives, gets = rank < giving, rank >= q.shape[2] - giving
        chosen = jnp.where(gets[..., None, None], many, usual)
        return jnp.where(gives[..., None, None], few, chosen)
