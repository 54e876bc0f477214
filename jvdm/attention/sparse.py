"""What all sparse policies share: blocks of tokens, what stays dense, and the tally."""

import dataclasses
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Bool, Float
from jvdm.attention.blocks import Blocks, blocks_of
from jvdm.attention.policy import AttentionCall, Policy, TokenGrid
from jvdm.attention.tally import Tally, density, recall
from jvdm.errors import ConfigError
from pallas_kernels import BlockMask, TileOrder

Mine = TypeVar("Mine", bound="Sparse")


@dataclasses.dataclass(frozen=True)
class Sparse(Policy):
    """Base of policies that list some blocks of keys for each block of queries.

    A subclass says which (`choose`). At density 1 every one of them is dense attention, bit
    for bit: nothing is permuted or listed.
    """

    density: float = 0.25
    """Share of the blocks of keys that a block of queries attends to, in (0, 1]."""
    dense_rows: float = 0.0
    """Share of the rows of a run, from its first, that are dense, in 0..1."""
    dense_layers: int = 0
    """Layers, from the first, that are dense."""
    dense_above: float = 1.0
    """Noise level above which the queries of a frame attend to everything; at 1 none do.

    For runs in which frames have different levels, where `dense_rows` means little: what a
    paper does in the first steps of a run is done in the first steps of each frame.
    """
    block: int = 0
    """Tokens of a block, a patch of one latent frame; 0 chooses by the grid."""
    recall_queries: int = 16
    """Queries by which a layer estimates its recall in every call; 0 estimates nothing."""

    def __post_init__(self) -> None:
        """Raises `ConfigError` for a field that is out of range."""
        for name in ("dense_rows", "dense_above"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name):g}", "it must be from 0 to 1")
        if not 0 < self.density <= 1:
            fix = "use 1 for dense attention, 0.25 for a quarter of it"
            what = f"density is {self.density:g}"
            raise ConfigError(what, "it is a share of attention, above 0 and at most 1", fix)
        for name in ("dense_layers", "block", "recall_queries"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}", "it is a number, 0 or more")

    def phases(self, num_rows: int) -> tuple[tuple[str, int], ...]:
        """The first rows are dense."""
        first = round(self.dense_rows * num_rows)
        parts = (("dense", first), ("sparse", num_rows - first))
        return tuple(part for part in parts if part[1])

    def in_phase(self, name: str) -> Policy:
        """Returns dense attention in the first rows."""
        return self._dense() if name == "dense" else self

    def in_layers(self, depth: int) -> tuple[tuple[Policy, int], ...]:
        """The first layers are dense."""
        if self.density < 1 and self.dense_layers >= depth:
            raise ConfigError(
                f"dense_layers is {self.dense_layers}",
                f"the network has {depth} layers, so that none would be sparse",
                "use fewer, or density=1",
            )
        if self.density == 1 or self.dense_layers == 0:
            return ((self, depth),)
        return ((self._dense(), self.dense_layers), (self, depth - self.dense_layers))

    def order(self, grid: TokenGrid) -> TileOrder | None:
        """Tokens of a block lie together."""
        return None if self.density == 1 else blocks_of(grid, self.block).order

    def init(self, grid: TokenGrid) -> Tally:
        """Checks that the grid has enough blocks; the state is what the layer really did."""
        if self.density < 1:
            self.listed(blocks_of(grid, self.block))
        return Tally.empty()

    def listed(self, blocks: Blocks) -> int:
        """Returns the blocks of keys that a block of queries attends to.

        Raises:
            ConfigError: If it is less than half a block.
        """
        count = round(self.density * blocks.count)
        if count < 1:
            raise ConfigError(
                f"density {self.density:g} of {blocks.grid.tokens} tokens",
                f"that is less than one of {blocks.count} blocks of {blocks.size} tokens",
                f"use a density of {1 / blocks.count:.2g} or more, or smaller blocks",
            )
        return count

    def select(
        self,
        q: Float[Array, "B L N D"],
        k: Float[Array, "B L N D"],
        v: Float[Array, "B L N D"],
        state: Tally,
        call: AttentionCall,
    ) -> tuple[BlockMask | None, Tally]:
        """Lists what `choose` marks, and everything for frames above `dense_above`."""
        if self.density == 1:
            return None, state.add(1.0, 1.0, dense=True)
        blocks = blocks_of(call.grid, self.block)
        marked, width = self.choose(q, k, v, call, blocks)
        marked = jnp.asarray(marked)
        if self.dense_above < 1:
            noisy = (call.t > self.dense_above)[:, blocks.frames]
            marked, width = marked | noisy[:, None, :, None], None
        mask = blocks.mask(marked, width)
        return mask, self.noted(state, q, k, v, mask, blocks)

    def noted(
        self,
        tally: Tally,
        q: Float[Array, "B L N D"],
        k: Float[Array, "B L N D"],
        v: Float[Array, "B L N D"],
        mask: BlockMask,
        blocks: Blocks,
    ) -> Tally:
        """Returns the tally with a call among the blocks of a mask."""
        seen: Any = jnp.nan
        if self.recall_queries:
            seen = recall(q, k, v, blocks, mask, self.recall_queries)
        return tally.add(density(blocks, mask), seen, dense=False)

    def choose(
        self,
        q: Float[Array, "B L N D"],
        k: Float[Array, "B L N D"],
        v: Float[Array, "B L N D"],
        call: AttentionCall,
        blocks: Blocks,
    ) -> tuple[Bool[Array | np.ndarray, "B N Q K"], int | None]:
        """Marks the blocks of keys that each block of queries attends to.

        Returns:
            The map, whose batch and heads may be 1, and the most that a row marks, None if
            that is not known.
        """
        raise NotImplementedError

    def _dense(self: Mine) -> Mine:
        return dataclasses.replace(self, density=1.0)
