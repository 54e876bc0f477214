"""Attention of a tile to the keys and values of the tile before it, in some rows and layers."""

import dataclasses

import jax.numpy as jnp

from jvdm.attention.policy import AttentionCall, KeptTokens, Policy, TokenGrid
from jvdm.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class TileBefore(Policy):
    """Queries of a tile meet keys and values of the tile before it instead of its own.

    So a tile that is told another prompt goes on with what the one before it shows. It is for tiles
    that hand on what layers remember (`Tiles.pairs`); keys get the places of the tile that reads
    them, as if it were its own clip. A tile that none was before, or that is evaluated for the
    second time, has its own keys.

    Reference: DiTCtrl, arXiv:2412.18597, section 3.3 (the last 5 of 30 layers, steps 2 to 24 of
    50), without the masks of foreground and background.
    """

    begin: float = 0.04
    """Share of the rows after which keys are shared."""
    end: float = 0.5
    """Share of the rows after which they are no more."""
    layers: float = 1 / 6
    """Share of the layers, the last ones, in which they are."""
    shares: bool = True
    """Whether these rows and layers share; the network sets it."""

    def phases(self, num_rows: int) -> tuple[tuple[str, int], ...]:
        """Divides the rows: own keys, shared ones, own ones."""
        first, last = (round(share * num_rows) for share in (self.begin, self.end))
        rows = (("own", first), ("shared", last - first), ("own", num_rows - last))
        return tuple((name, count) for name, count in rows if count > 0)

    def in_phase(self, name: str) -> "TileBefore":
        """Returns the policy of rows that share, or do not."""
        return dataclasses.replace(self, shares=name == "shared")

    def in_layers(self, depth: int) -> tuple[tuple["TileBefore", int], ...]:
        """Divides the layers: those that have their own keys alone, and those that share."""
        count = round(self.layers * depth) if self.shares else 0
        parts = ((dataclasses.replace(self, shares=False), depth - count), (self, count))
        return tuple((policy, number) for policy, number in parts if number > 0)

    def init(self, grid: TokenGrid) -> KeptTokens:
        """Returns what a layer knows before the first tile.

        Raises:
            ConfigError: If the shares are none.
        """
        if not (0 <= self.begin <= self.end <= 1 and 0 <= self.layers <= 1):
            raise ConfigError(
                f"keys are shared from {self.begin:g} to {self.end:g} of the rows in "
                f"{self.layers:g} of the layers",
                "these are shares, and the first is no larger than the second",
                "use numbers from 0 to 1",
            )
        return KeptTokens.none(grid, grid.tokens)

    def attended(self, q, k, v, state: KeptTokens, call: AttentionCall):
        """Takes keys and values of an earlier tile, and keeps its own for the next."""
        if not self.shares:
            return call.turn(k), v, None, state
        before = (state.frame >= 0) & (state.frame < call.row.frame)
        keys, values = jnp.where(before, state.k, k), jnp.where(before, state.v, v)
        own = KeptTokens(k.astype(state.k.dtype), v.astype(state.v.dtype), call.row.frame)
        return call.turn(keys), values.astype(v.dtype), None, own

    def select(self, q, k, v, state: KeptTokens, call: AttentionCall):
        """What is attended to are all tokens of one tile (`attended`)."""
        return None, state
