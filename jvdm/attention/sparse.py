"""What all sparse policies share: blocks of tokens, what stays dense, and the tally."""

import dataclasses
import functools
import itertools
from typing import Any, ClassVar, TypeVar, cast

import jax.numpy as jnp
import numpy as np

from jvdm.arrays import Array, Bool, Float
from jvdm.attention.blocks import Blocks, blocks_of
from jvdm.attention.policy import AttentionCall, Policy, TokenGrid
from jvdm.attention.tally import Tally, density, recall
from jvdm.errors import ConfigError
from pallas_kernels import BlockMask, TileOrder, best_blocks

Mine = TypeVar("Mine", bound="Sparse")
Shares = tuple[Any, ...] | list[Any]
"""Numbers `[rows of a run][layers][heads]`; an axis of one entry serves all."""


@dataclasses.dataclass(frozen=True)
class Sparse(Policy):
    """Base of policies that list some blocks of keys for each block of queries.

    A subclass says which (`choose`). At density 1 every one of them is dense attention, bit
    for bit: nothing is permuted or listed.
    """

    equal: ClassVar[str] = ""
    """Why rows, layers and heads cannot have densities of their own; empty where they can."""

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
    shares: Shares = ()
    """What the density is multiplied by, `[rows][layers][heads]` with 1 or all of each; products
    of 1 and more are dense. None is 1 everywhere; at density 1 the shares are densities."""

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
        object.__setattr__(self, "shares", _tuples(self.shares))  # lists have no hash
        if self.shares:
            check_shares(self.shares)
            if self.equal:
                what, fix = f"shares of {type(self).__name__}", "use another policy, or no shares"
                raise ConfigError(what, self.equal, fix)

    @property
    def densities(self) -> Float[np.ndarray, "R L N"]:
        """The density of rows, layers and heads; an axis of one entry serves all."""
        return _densities(self.density, cast("tuple[Any, ...]", self.shares))

    @property
    def is_dense(self) -> bool:
        """Whether nothing is left out anywhere."""
        return bool(self.densities.min() == 1)

    def density_of(self, call: AttentionCall) -> Float[Array, " N"]:
        """Returns the density of every head of a call, or one for all."""
        table = self.densities
        place = zip((call.row.index, call.layer), table.shape, strict=False)
        row, layer = (jnp.minimum(at, size - 1) for at, size in place)
        return jnp.asarray(table, jnp.float32)[row, layer]

    def phases(self, num_rows: int) -> tuple[tuple[str, int], ...]:
        """The first rows are dense, and those of which all shares are.

        Raises:
            ConfigError: If there are shares of another number of rows.
        """
        self.check("rows", num_rows)
        dense = self.densities.min((1, 2)) == 1
        names = np.where(np.arange(num_rows) < round(self.dense_rows * num_rows), True, dense)
        if self.is_dense:  # one name, as without shares
            names[round(self.dense_rows * num_rows) :] = False
        grouped = itertools.groupby("dense" if one else "sparse" for one in names)
        return tuple((name, len(list(rows))) for name, rows in grouped)

    def check(self, axis: str, count: int) -> None:
        """Raises `ConfigError` if there are shares of another number of rows, layers or heads."""
        has = self.densities.shape[("rows", "layers", "heads").index(axis)]
        if has not in (1, count):
            what, fix = f"shares of {has} {axis}", f"give 1 or {count} {axis}"
            raise ConfigError(what, f"the {_WHOLES[axis]} {count}", fix)

    def in_phase(self, name: str) -> Policy:
        """Returns dense attention in the dense rows."""
        return self._dense() if name == "dense" else self

    def in_layers(self, depth: int) -> tuple[tuple[Policy, int], ...]:
        """The first layers are dense, and those of which all shares are.

        Raises:
            ConfigError: If no layer would be sparse, or there are shares of other layers.
        """
        self.check("layers", depth)
        if not self.is_dense and self.dense_layers >= depth:
            raise ConfigError(
                f"dense_layers is {self.dense_layers}",
                f"the network has {depth} layers, so that none would be sparse",
                "use fewer, or density=1",
            )
        if self.is_dense:
            return ((self, depth),)
        dense = self.densities.min((0, 2)) == 1
        dense = np.where(np.arange(depth) < self.dense_layers, True, dense)
        grouped = [(one, len(list(group))) for one, group in itertools.groupby(dense.tolist())]
        return tuple((self._dense() if one else self, count) for one, count in grouped)

    def order(self, grid: TokenGrid) -> TileOrder | None:
        """Tokens of a block lie together."""
        return None if self.is_dense else blocks_of(grid, self.block).order

    def init(self, grid: TokenGrid) -> Tally:
        """Checks that the grid has enough blocks; the state is what the layer really did."""
        self.check("heads", grid.heads)
        if not self.is_dense:
            self.listed(blocks_of(grid, self.block))
        return Tally.empty()

    def listed(self, blocks: Blocks) -> int:
        """Returns the blocks of keys that a block of queries attends to, at most.

        Raises:
            ConfigError: If it is less than half a block, anywhere.
        """
        least = self.densities.min()
        if round(least * blocks.count) < 1:
            raise ConfigError(
                f"density {least:g} of {blocks.grid.tokens} tokens",
                f"that is less than one of {blocks.count} blocks of {blocks.size} tokens",
                f"use a density of {1 / blocks.count:.2g} or more, or smaller blocks",
            )
        return round(self.densities.max() * blocks.count)

    def best(
        self, scores: Float[Array, "B N Q K"], call: AttentionCall, blocks: Blocks
    ) -> Bool[Array, "B N Q K"]:
        """Marks the blocks of highest score, as many as rows, layers and heads may list."""
        if self.densities.size == 1:
            return best_blocks(scores, self.listed(blocks))
        counts = jnp.round(self.density_of(call) * blocks.count)
        rank = jnp.argsort(jnp.argsort(-scores, -1), -1)  # 0 is the best, of equal ones the first
        return rank < counts[None, :, None, None]

    def select(
        self,
        q: Float[Array, "B L N D"],
        k: Float[Array, "B L N D"],
        v: Float[Array, "B L N D"],
        state: Tally,
        call: AttentionCall,
    ) -> tuple[BlockMask | None, Tally]:
        """Lists what `choose` marks, and everything for frames above `dense_above`."""
        if self.is_dense:
            return None, state.add(1.0, 1.0, dense=True)
        blocks = blocks_of(call.grid, self.block)
        marked, width = self.choose(q, k, v, call, blocks)
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
            seen = recall(q, k, blocks, mask, self.recall_queries)
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
        return dataclasses.replace(self, density=1.0, shares=())


def _tuples(table: Any) -> Any:
    """Returns a table whose lists are tuples, as deep as they go."""
    return tuple(map(_tuples, table)) if isinstance(table, list | tuple) else table


_WHOLES = {"rows": "run has", "layers": "network has", "heads": "layer has"}


@functools.lru_cache(maxsize=64)
def _densities(density: float, shares: Shares) -> Float[np.ndarray, "R L N"]:
    """Returns the products, 1 at most."""
    return np.minimum(density * np.asarray(shares or (((1.0,),),)), 1.0)


def check_shares(shares: Shares) -> None:
    """Raises `ConfigError` if shares are no table of positive numbers."""
    why, fix = "it is a table [rows][layers][heads]", "(((0.5,), (1.5,)),) is one of two layers"
    try:
        table = np.asarray(shares, np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"shares are {shares!r:.60}", f"{why}, all rows alike", fix) from error
    if table.ndim != 3 or not table.size:
        raise ConfigError(f"shares are {shares!r:.60}", why, fix)
    if not (np.isfinite(table) & (table > 0)).all():
        raise ConfigError(f"a share is {table.min():g}", "it is a factor above 0", fix)
